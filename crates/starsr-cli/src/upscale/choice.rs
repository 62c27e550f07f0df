// SPDX-License-Identifier: MPL-2.0

//! Which of the input's streams of a kind go into the output.

use crate::media::streams::Kind;

/// The streams beside the video that go into the output.
#[derive(Debug, Clone, clap::Args)]
pub struct Choices {
    /// Keep these audio streams only: numbers or languages with commas, such as 1,3 or eng
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
    /// As the container tags it, such as `eng`.
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

    fn takes(&self, number: usize, language: &str) -> bool {
        self.0.iter().any(|pick| match pick {
            Pick::Number(wanted) => *wanted == number,
            Pick::Language(wanted) => is_same(&language.to_ascii_lowercase(), wanted),
        })
    }
}

/// Whether both tags name one language: most tags of three letters begin with that of two.
fn is_same(own: &str, wanted: &str) -> bool {
    own == wanted
        || own.len() == 2 && wanted.starts_with(own)
        || wanted.len() == 2 && own.starts_with(wanted)
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
            let mut count = 0;
            let mut found = false;
            for place in of_kind {
                count += 1;
                let takes = |choice: &Choice| choice.takes(count, &streams[place].1);
                wanted[place] = !none && choice.as_ref().is_none_or(takes);
                found |= wanted[place];
            }
            if choice.is_some() && !found {
                return Err(format!(
                    "{option} names none of the input's {count} streams of {}; starsr info lists them",
                    kind.word()
                ));
            }
        }
        Ok(wanted)
    }
}
