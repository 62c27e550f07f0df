// SPDX-License-Identifier: MPL-2.0

//! The options of a command line that change frames, kept as they were given.

use std::collections::BTreeMap;
use std::path::Path;

use clap::ArgMatches;
use clap::parser::ValueSource;
use serde::{Deserialize, Serialize};

use crate::upscale::Args;

/// Options that concern the machine, or only what is said and where.
const NOT_FRAMES: [&str; 16] = [
    "files",
    "output_dir",
    "force",
    "estimate",
    "preview",
    "quiet",
    "json",
    "verbose",
    "provider",
    "threads",
    "stall_timeout",
    "job",
    "resume",
    "workers",
    "devices",
    "raw_output",
];
/// Properties of the element that concern the machine.
const MACHINE: [&str; 11] = [
    "device",
    "device-memory",
    "execution-provider",
    "guidance-batching",
    "model-cache-dir",
    "ort-library",
    "provider-library",
    "provider-name",
    "provider-options",
    "read-ahead",
    "threads",
];

/// Whether the element's property says how a machine works and not what frames become.
pub fn is_of_machine(property: &str) -> bool {
    MACHINE.contains(&property)
}

/// Options that change frames, by the names that they have on the command line, with their values.
/// A flag has none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Given(BTreeMap<String, Vec<String>>);

impl Given {
    /// Those of `matches`, which are of a command with the options of `starsr upscale`.
    pub fn new(matches: &ArgMatches) -> Self {
        let command = <Args as clap::Args>::augment_args(clap::Command::new("upscale"));
        let mut given = BTreeMap::new();
        for arg in command.get_arguments() {
            let id = arg.get_id().as_str();
            let is_known = matches.try_contains_id(id).is_ok();
            if NOT_FRAMES.contains(&id)
                || !is_known
                || matches.value_source(id) != Some(ValueSource::CommandLine)
            {
                continue;
            }
            let mut values: Vec<_> = match arg.get_action() {
                clap::ArgAction::SetTrue => Vec::new(),
                _ => matches
                    .get_raw(id)
                    .into_iter()
                    .flatten()
                    .map(|value| value.to_string_lossy().into_owned())
                    .collect(),
            };
            match id {
                // A worker may run in another folder.
                "model" => values.iter_mut().for_each(|value| *value = absolute(value)),
                "set" => {
                    values.retain(|value| {
                        !value.split_once('=').is_some_and(|(name, _)| is_of_machine(name))
                    });
                    if values.is_empty() {
                        continue;
                    }
                }
                _ => {}
            }
            given.insert(arg.get_long().unwrap_or(id).to_owned(), values);
        }
        Self(given)
    }

    /// The words of a command line with these options.
    pub fn words(&self) -> Vec<String> {
        let mut words = Vec::new();
        for (name, values) in &self.0 {
            if values.is_empty() {
                words.push(format!("--{name}"));
            }
            words.extend(values.iter().map(|value| format!("--{name}={value}")));
        }
        words
    }

    /// The first difference from the options of a `plan`, as a phrase. Bundles are compared by what is
    /// in them, wherever they are.
    pub fn difference(&self, plan: &Self) -> Option<String> {
        let names: std::collections::BTreeSet<_> = self.0.keys().chain(plan.0.keys()).collect();
        let words = |values: Option<&Vec<String>>| match values {
            None => "is not given".to_owned(),
            Some(values) if values.is_empty() => "is given".to_owned(),
            Some(values) => format!("is {}", values.join(" ")),
        };
        names.into_iter().find_map(|name| {
            let (here, there) = (self.0.get(name), plan.0.get(name));
            let differs = here != there && name != "model";
            differs
                .then(|| format!("--{name} {}, and in the plan it {}", words(here), words(there)))
        })
    }
}

/// A path that exists, from the root; anything else as it is.
fn absolute(value: &str) -> String {
    let path = Path::new(value);
    let found = path.is_dir().then(|| std::path::absolute(path).ok()).flatten();
    found.map_or_else(|| value.to_owned(), |path| path.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(words: &[&str]) -> Given {
        let command = <Args as clap::Args>::augment_args(clap::Command::new("upscale"));
        Given::new(&command.get_matches_from([&["upscale"], words, &["in", "out"]].concat()))
    }

    #[test]
    fn options_come_back() {
        let words = [
            "--deinterlace",
            "--no-ffmpeg",
            "--set=window-mode=wavefront",
            "--set=seed=4",
            "--prompt=a b",
        ];
        let given = given(&words);
        let args = Args::of(given.words()).unwrap();
        assert_eq!(args.set.len(), 2);
        assert!(args.no_ffmpeg && args.deinterlace.is_some());
        assert_eq!(super::Given::default().difference(&Given::default()), None);
    }

    #[test]
    fn only_what_changes_frames_is_kept() {
        let machine = ["--quiet", "--threads=3", "--set=device=2", "--provider=cpu", "--force"];
        assert_eq!(given(&machine), Given::default());
    }

    #[test]
    fn a_difference_is_named() {
        let (a, b) = (given(&["--steps=2", "--no-audio"]), given(&["--steps=4"]));
        assert_eq!(
            a.difference(&b).unwrap(),
            "--no-audio is given, and in the plan it is not given"
        );
        let b = given(&["--steps=4", "--no-audio"]);
        assert_eq!(a.difference(&b).unwrap(), "--steps is 2, and in the plan it is 4");
        assert_eq!(a.difference(&a), None);
    }

    #[test]
    fn every_option_left_out_exists() {
        let command = <Args as clap::Args>::augment_args(clap::Command::new("upscale"));
        for id in NOT_FRAMES {
            assert!(command.get_arguments().any(|arg| arg.get_id() == id), "{id}");
        }
    }
}
