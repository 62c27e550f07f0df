// SPDX-License-Identifier: MPL-2.0

//! The program `starsr`: the element `starsr` for people with files, embedded as any application
//! would embed it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

mod bench;
mod compare;
mod info;
mod interrupts;
mod job;
mod media;
mod output;
mod terminal;
mod upscale;
mod values;

use interrupts::{INTERRUPTED, Stop};

/// Makes low-quality video sharp and large again with STAR diffusion models.
#[derive(Debug, Parser)]
#[command(name = "starsr", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Upscale(Box<upscale::Args>),
    Plan(Box<job::PlanArgs>),
    Work(job::work::Args),
    Join(job::join::Args),
    Status(job::status::Args),
    Compare(compare::Args),
    Info(info::Args),
    Bench(bench::Args),
    /// Write the man pages and the shell completions into folders below DIR
    #[command(hide = true)]
    Documentation {
        /// Folder that gets `man/` and `completions/`
        dir: PathBuf,
    },
}

fn main() -> ExitCode {
    let command = parse().command;
    let goes_on = match &command {
        Command::Upscale(args) => args.is_job(),
        Command::Work(_) | Command::Join(_) => true,
        _ => false,
    };
    let result = match command {
        Command::Upscale(args) => upscale::run(&args),
        Command::Plan(args) => job::plan(&args),
        Command::Work(args) => job::work::run(&args),
        Command::Join(args) => job::join::run(&args),
        Command::Status(args) => job::status::run(&args).map_err(Stop::Failed),
        Command::Compare(args) => compare::run(&args),
        Command::Info(args) => info::run(&args).map_err(Stop::Failed),
        Command::Bench(args) => bench::run(&args),
        Command::Documentation { dir } => write_documentation(&dir).map_err(Stop::Failed),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Stop::Failed(reason)) => {
            terminal::warn(format_args!("starsr: {reason}"));
            ExitCode::FAILURE
        }
        Err(Stop::Interrupted) => {
            let left = if goes_on {
                "the same command goes on with the job"
            } else {
                "no unfinished file is left"
            };
            terminal::warn(format_args!("starsr: interrupted; {left}"));
            ExitCode::from(INTERRUPTED)
        }
    }
}

/// The program's command line.
fn command() -> clap::Command {
    Cli::command().mut_subcommand("plan", |plan| {
        let hide = |plan: clap::Command, id: &&str| plan.mut_arg(*id, |arg| arg.hide(true));
        let plan = job::NOT_PLANNED.iter().fold(plan, hide);
        plan.mut_arg("files", |arg| arg.value_names(["INPUT"]).num_args(1).help("The film to read"))
            .mut_arg("job", |arg| arg.required(true).help("Folder that gets the plan"))
            .after_help("")
    })
}

/// The command line that was given.
fn parse() -> Cli {
    let matches = command().get_matches();
    let mut cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let given = || matches.subcommand().map(|(_, matches)| job::Given::new(matches));
    match &mut cli.command {
        Command::Upscale(args) => args.given = given().unwrap_or_default(),
        Command::Plan(args) => args.options.given = given().unwrap_or_default(),
        _ => {}
    }
    cli
}

/// Writes `man/*.1` and completions for bash, zsh and fish below `dir`.
fn write_documentation(dir: &Path) -> Result<(), String> {
    let (man, completions) = (dir.join("man"), dir.join("completions"));
    let failed = |error: std::io::Error| format!("{}: {error}", dir.display());
    for folder in [&man, &completions] {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    clap_mangen::generate_to(command(), &man).map_err(failed)?;
    for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish]
    {
        clap_complete::generate_to(shell, &mut command(), "starsr", &completions)
            .map_err(failed)?;
    }
    Ok(())
}
