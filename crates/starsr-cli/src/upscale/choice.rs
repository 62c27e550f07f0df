// SPDX-License-Identifier: MPL-2.0

//! Which of the input's streams of a kind go into the output.

use crate::media::streams::Kind;
use crate::values::counted;

/// The streams beside the video that go into the output.
#[derive(Debug, Clone, clap::Args)]
pub struct Choices {
    /// Keep these audio streams only: numbers, or languages as starsr info prints them, with commas: 1,3 or eng
    #[arg(long, value_name = "LIST", value_parser = Choice::parse, conflicts_with = "no_audio", help_heading = "Streams")]
    pub audio: Option<Choice>,
    /// Keep no audio
    #[arg(long, help_heading = "Streams")]
    pub no_audio: bool,
    /// Keep these subtitles only
    #[arg(long, value_name = "LIST", value_parser = Choice::parse, conflicts_with = "no_subtitles", help_heading = "Streams")]
    pub subtitles: Option<Choice>,
    /// Keep no subtitles
    #[arg(long, help_heading = "Streams")]
    pub no_subtitles: bool,
}

/// Streams of one kind, by number or by language.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice(Vec<Pick>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pick {
    /// The first is 1.
    Number(usize),
    /// As the container tags it, and as `starsr info` prints it, such as `eng`.
    Language(String),
}

impl Choice {
    /// The choice that `text` names: numbers and languages with commas between them.
    pub fn parse(text: &str) -> Result<Self, String> {
        let pick = |word: &str| match word.trim().parse() {
            Ok(0) => Err("streams count from 1".to_owned()),
            Ok(number) => Ok(Pick::Number(number)),
            Err(_) if (2..=3).contains(&word.trim().len()) => {
                Ok(Pick::Language(word.trim().to_ascii_lowercase()))
            }
            Err(_) => Err(format!("'{word}' is neither a number nor a language such as eng")),
        };
        text.split(',').map(pick).collect::<Result<_, _>>().map(Self)
    }
}

impl Pick {
    /// Whether it is the stream of `number` among its kind.
    fn is(&self, number: usize, language: &str) -> bool {
        match self {
            Self::Number(wanted) => *wanted == number,
            Self::Language(wanted) => language.eq_ignore_ascii_case(wanted),
        }
    }
}

impl std::fmt::Display for Pick {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Language(language) => write!(f, "{language}"),
        }
    }
}

/// A stream as far as the choice asks: its kind and, where known, its language.
pub type Described = (Option<Kind>, String);

impl Choices {
    /// Which of `streams` the options ask for. Fails where they name one that is not there.
    pub fn select(&self, streams: &[Described]) -> Result<Vec<bool>, String> {
        let mut wanted = vec![true; streams.len()];
        let kinds = [
            (Kind::Audio, &self.audio, self.no_audio, "--audio"),
            (Kind::Subtitle, &self.subtitles, self.no_subtitles, "--subtitles"),
        ];
        for (kind, choice, none, option) in kinds {
            let of_kind = (0..streams.len()).filter(|place| streams[*place].0 == Some(kind));
            let of_kind: Vec<_> = of_kind.collect();
            let picks = choice.as_ref().map_or(&[][..], |choice| &choice.0);
            let is = |pick: &Pick, number: usize| pick.is(number + 1, &streams[of_kind[number]].1);
            for (number, place) in of_kind.iter().enumerate() {
                let is_picked = picks.iter().any(|pick| is(pick, number));
                wanted[*place] = !none && (choice.is_none() || is_picked);
            }
            let is_there = |pick: &&Pick| (0..of_kind.len()).any(|number| is(pick, number));
            if let Some(pick) = picks.iter().find(|pick| !is_there(pick)) {
                let count = counted(of_kind.len() as u64, &format!("{} stream", kind.word()));
                return Err(format!(
                    "{option} {pick} is none of the input's {count}; starsr info lists them"
                ));
            }
        }
        Ok(wanted)
    }
}
