// SPDX-License-Identifier: MPL-2.0

//! A worker: claims segments and restores them.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use gst::prelude::*;
use gststarsr::planning::Outline;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::claims::{self, Claim, Claims};
use super::decode::Decoder;
use super::given::is_of_machine;
use super::part::{About, Reader};
use super::plan::{Job, Plan};
use super::restore::{Failure, Restorer};
use super::store;
use crate::interrupts::{Interrupts, Stop};
use crate::media::elements::make;
use crate::terminal;
use crate::upscale::Args as Options;
use crate::upscale::batch;
use crate::upscale::name_and_value;
use crate::upscale::progress::print_json;
use crate::values::{clock, counted};

/// Attempts at a segment before it counts as failed.
const ATTEMPTS: u64 = 3;
/// Interval at which a worker with nothing to do looks again.
const PAUSE: Duration = Duration::from_millis(500);

/// Restore segments of a job
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Folder of the job
    #[arg(long, value_name = "DIR")]
    pub job: PathBuf,
    /// Restore this segment, counted from 0
    #[arg(long, value_name = "N")]
    pub segment: Option<usize>,
    /// Restore one segment that nobody works on [default: one after the other, until all are done]
    #[arg(long, conflicts_with = "segment")]
    pub next: bool,
    #[command(flatten)]
    pub machine: Machine,
    /// Take over segments whose worker has given no sign of life for so long
    #[arg(long, value_name = "SECONDS", default_value_t = claims::LEASE.as_secs(), value_parser = clap::value_parser!(u64).range(1..))]
    pub lease: u64,
    /// Print no progress
    #[arg(short, long)]
    pub quiet: bool,
    /// Print results as JSON, one object a line
    #[arg(long, conflicts_with = "quiet")]
    pub json: bool,
    /// End when standard input does
    #[arg(long, hide = true)]
    pub attached: bool,
}

/// What concerns the machine and not the frames.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Machine {
    /// Where the input is on this machine [default: where it was for the plan]
    #[arg(long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Folder of the model bundle on this machine [default: that of the plan]
    #[arg(long, value_name = "DIR")]
    pub model: Option<String>,
    /// What the model runs on, as for starsr upscale
    #[arg(long, value_name = "NAME")]
    pub provider: Option<String>,
    /// CPU threads
    #[arg(long, value_name = "N")]
    pub threads: Option<String>,
    /// Set a property of starsr that concerns the machine, such as device=1; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = name_and_value)]
    pub set: Vec<(String, String)>,
}

impl Machine {
    /// That of the options of `starsr upscale`.
    pub fn of(options: &Options) -> Self {
        let set = options.set.iter().filter(|(name, _)| is_of_machine(name)).cloned().collect();
        let Options { model, provider, threads, .. } = options;
        let (model, provider, threads) = (model.clone(), provider.clone(), threads.clone());
        Self { input: None, model, provider, threads, set }
    }

    /// The options of the job's plan on this machine.
    pub fn options(&self, job: &Job) -> Result<Options, String> {
        if let Some((name, _)) = self.set.iter().find(|(name, _)| !is_of_machine(name)) {
            return Err(format!("--set: {name} changes frames, and belongs to starsr plan"));
        }
        let mut options = job.args()?;
        options.model = self.model.clone().or(options.model);
        options.provider.clone_from(&self.provider);
        options.threads.clone_from(&self.threads);
        options.set.extend(self.set.iter().cloned());
        Ok(options)
    }

    /// The words of a command line with these options.
    pub fn words(&self) -> Vec<String> {
        let mut words = Vec::new();
        let named =
            [("model", &self.model), ("provider", &self.provider), ("threads", &self.threads)];
        for (name, value) in named {
            words.extend(value.iter().map(|value| format!("--{name}={value}")));
        }
        words.extend(self.set.iter().map(|(name, value)| format!("--set={name}={value}")));
        words
    }
}

/// Why a segment has no part yet.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failed {
    pub attempts: u64,
    pub error: String,
}

impl Failed {
    /// What is noted of a segment.
    pub fn of(job: &Job, segment: usize) -> Option<Self> {
        serde_json::from_slice(&fs::read(job.failure(segment)).ok()?).ok()
    }

    /// Whether it is not tried again.
    pub fn is_final(&self) -> bool {
        self.attempts >= ATTEMPTS
    }
}

/// Runs a worker.
pub fn run(args: &Args) -> Result<(), Stop> {
    super::start()?;
    let interrupts = Interrupts::catch()?;
    if args.attached {
        end_with_parent(&interrupts);
    }
    let job = Job::open(&args.job)?;
    let options = args.machine.options(&job)?;
    let source = args.machine.input.clone().unwrap_or_else(|| job.plan.input.path.clone());
    let done = Arc::default();
    let lease = Duration::from_secs(args.lease);
    let report: &dyn Fn(&Done) = &|done| {
        if args.json {
            done.print_json();
        } else if !args.quiet {
            terminal::say(done.sentence());
        }
    };
    let mut worker = Worker::new(&job, &options, source, lease, &done, &interrupts)?;
    match (args.segment, args.next) {
        (Some(segment), _) => worker.one(segment, report),
        (None, true) => worker.next(report),
        (None, false) => worker.all(report),
    }
}

/// Interrupts this process when its parent has ended, in whatever way.
fn end_with_parent(interrupts: &Interrupts) {
    let count = interrupts.count.clone();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        count.fetch_add(1, Ordering::SeqCst);
    });
}

/// A segment that is done.
pub struct Done {
    pub about: About,
    pub of: usize,
}

impl Done {
    fn seconds(&self) -> f64 {
        self.about.milliseconds as f64 / 1000.0
    }

    fn sentence(&self) -> String {
        let About { segment, frames, .. } = &self.about;
        let (time, rate) = (self.seconds(), *frames as f64 / self.seconds().max(1e-3));
        let frames = counted(*frames, "frame");
        format!("segment {segment} of {}: {frames}, {} ({rate:.2} fps)", self.of, clock(time))
    }

    fn print_json(&self) {
        let About { segment, frames, .. } = &self.about;
        let fields = json!({
            "segment": segment,
            "segments": self.of,
            "frames": frames,
            "seconds": self.seconds(),
        });
        print_json("segment", fields);
    }
}

/// An element that keeps the model loaded from one segment to the next.
struct Keeper(gst::Element);

impl Drop for Keeper {
    fn drop(&mut self) {
        // It only releases the model.
        let _ = self.0.set_state(gst::State::Null);
    }
}

/// What restores segments of a job, one after the other.
pub struct Worker<'a> {
    job: &'a Job,
    options: &'a Options,
    source: batch::Job,
    claims: Claims,
    done: &'a Arc<AtomicU64>,
    interrupts: &'a Interrupts,
}

impl<'a> Worker<'a> {
    /// Checks that this machine has the input and the model of the plan.
    pub fn new(
        job: &'a Job,
        options: &'a Options,
        source: PathBuf,
        lease: Duration,
        done: &'a Arc<AtomicU64>,
        interrupts: &'a Interrupts,
    ) -> Result<Self, String> {
        let plan = &job.plan;
        plan.input.check(&source)?;
        let starsr = make("starsr")?;
        options.configure(&starsr)?;
        check_model(plan, &Outline::new(&starsr)?)?;
        job.check_writable()?;
        let claims = Claims::new(job.claims(), lease, done.clone());
        let output = job.folder.clone();
        let source = batch::Job { input: source.clone(), source, output };
        Ok(Self { job, options, source, claims, done, interrupts })
    }

    /// Restores segments until all are done, or have failed.
    pub fn all(&mut self, report: &dyn Fn(&Done)) -> Result<(), Stop> {
        let (job, source) = (self.job, self.source.clone());
        let mut decoder = self.decoder(&source)?;
        let keeper = self.keeper();
        let mut first = 0;
        loop {
            let mut held = false;
            // On from the last one, so that the input is read in order.
            let count = job.plan.segments.len();
            let mut worked = false;
            for segment in (first..count).chain(0..first) {
                self.check_interrupts()?;
                if self.is_settled(segment) {
                    continue;
                }
                let Some(claim) = self.claims.claim(segment)? else {
                    held = true;
                    continue;
                };
                if job.part(segment).exists() {
                    continue;
                }
                match self.restore(segment, &claim, &mut decoder) {
                    Ok(done) => report(&done),
                    Err(Failure::Interrupted) => return Err(Stop::Interrupted),
                    Err(Failure::Job(reason)) => return Err(reason.into()),
                    Err(Failure::Segment(reason)) => self.note(segment, reason)?,
                    Err(Failure::Lost) => {}
                }
                first = (segment + 1) % count;
                worked = true;
                break;
            }
            if !worked {
                if !held {
                    break;
                }
                std::thread::sleep(PAUSE);
            }
        }
        drop(keeper);
        self.verdict()
    }

    /// Restores one segment that nobody works on, if there is one.
    pub fn next(&mut self, report: &dyn Fn(&Done)) -> Result<(), Stop> {
        for segment in 0..self.job.plan.segments.len() {
            if self.is_settled(segment) {
                continue;
            }
            if let Some(claim) = self.claims.claim(segment)?
                && !self.job.part(segment).exists()
            {
                return self.claimed(segment, &claim, report);
            }
        }
        Ok(())
    }

    /// Restores the given segment, unless its part is there. Waits while somebody else works on it.
    pub fn one(&mut self, segment: usize, report: &dyn Fn(&Done)) -> Result<(), Stop> {
        let count = self.job.plan.segments.len();
        if segment >= count {
            let folder = self.job.folder.display();
            return Err(format!(
                "{folder}: has {}, counted from 0; there is no segment {segment}",
                counted(count as u64, "segment")
            )
            .into());
        }
        loop {
            self.check_interrupts()?;
            if self.job.part(segment).exists() {
                return Ok(());
            }
            if let Some(claim) = self.claims.claim(segment)?
                && !self.job.part(segment).exists()
            {
                return self.claimed(segment, &claim, report);
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Restores a segment that is claimed.
    fn claimed(&self, segment: usize, claim: &Claim, report: &dyn Fn(&Done)) -> Result<(), Stop> {
        let mut decoder = self.decoder(&self.source)?;
        match self.restore(segment, claim, &mut decoder) {
            Ok(done) => report(&done),
            Err(Failure::Interrupted) => return Err(Stop::Interrupted),
            Err(Failure::Job(reason)) => return Err(reason.into()),
            Err(Failure::Segment(reason)) => {
                self.note(segment, reason.clone())?;
                return Err(format!("segment {segment}: {reason}").into());
            }
            // The part will come from the other.
            Err(Failure::Lost) => {}
        }
        Ok(())
    }

    fn check_interrupts(&self) -> Result<(), Stop> {
        match self.interrupts.count.load(Ordering::SeqCst) {
            0 => Ok(()),
            _ => Err(Stop::Interrupted),
        }
    }

    /// Whether a segment is done, or has failed for good.
    fn is_settled(&self, segment: usize) -> bool {
        self.job.part(segment).exists()
            || Failed::of(self.job, segment).is_some_and(|failed| failed.is_final())
    }

    fn decoder<'s>(&self, source: &'s batch::Job) -> Result<Decoder<'s>, Stop>
    where
        'a: 's,
    {
        Decoder::new(self.options, source, &self.job.frames, self.interrupts)
    }

    fn restore(
        &self,
        segment: usize,
        claim: &Claim,
        decoder: &mut Decoder,
    ) -> Result<Done, Failure> {
        let Self { job, options: args, interrupts, done, .. } = *self;
        let restorer = Restorer { job, args, interrupts, done };
        let plan = &job.plan.segments[segment];
        let about = restorer.run(segment, plan, decoder, &claim.is_lost)?;
        // An earlier failure is of no interest any more.
        let _ = fs::remove_file(job.failure(segment));
        Ok(Done { about, of: job.plan.segments.len() })
    }

    /// Notes that a segment has failed. Fails where that is the job's fault.
    fn note(&self, segment: usize, error: String) -> Result<(), String> {
        self.job.plan.input.check(&self.source.source)?;
        let attempts = Failed::of(self.job, segment).map_or(0, |failed| failed.attempts) + 1;
        let failed = serde_json::to_vec(&Failed { attempts, error });
        let failed = failed.map_err(|error| error.to_string())?;
        store::write(&self.job.failure(segment), &failed)
    }

    /// The sentence about segments that have failed, if there are any.
    fn verdict(&self) -> Result<(), Stop> {
        let count = self.job.plan.segments.len();
        let failed: Vec<_> = (0..count)
            .filter(|segment| !self.job.part(*segment).exists())
            .filter_map(|segment| Some((segment, Failed::of(self.job, segment)?)))
            .collect();
        let Some((segment, Failed { error, .. })) = failed.first() else { return Ok(()) };
        let number = counted(failed.len() as u64, "segment");
        let reason = format!("{number} of {count} failed; the first is segment {segment}: {error}");
        Err(reason.into())
    }

    /// `None` where the model cannot be loaded, which each segment will say.
    fn keeper(&self) -> Option<Keeper> {
        let keeper = Keeper(make("starsr").ok()?);
        self.options.configure(&keeper.0).ok()?;
        keeper.0.set_property("scene-detection", false);
        keeper.0.set_state(gst::State::Paused).ok()?;
        Some(keeper)
    }
}

/// Fails where the model of `outline` is another one than that of the plan.
pub fn check_model(plan: &Plan, outline: &Outline) -> Result<(), String> {
    if outline.model_sha256 == plan.model.sha256 {
        return Ok(());
    }
    let (here, there) = (&outline.model, &plan.model.name);
    let difference = if here == there {
        format!("the model bundle {here} is not the one of the plan: its files differ")
    } else {
        format!("the model bundle is {here}, and in the plan it is {there}")
    };
    Err(format!("{difference}; name that one with --model, or plan again"))
}

/// What the part of a segment says of itself, if there is one. Fails where that is of another plan,
/// and with `whole` where the part was altered.
pub fn checked(job: &Job, segment: usize, whole: bool) -> Result<Option<About>, String> {
    let path = job.part(segment);
    let Some(reader) = Reader::open(&path)? else { return Ok(None) };
    let frames = &job.plan.segments[segment].frames;
    let about = if whole { reader.check()? } else { reader.about };
    let count = frames.end - frames.start;
    if about.plan != job.id || about.segment != segment || about.frames != count {
        return Err(format!("{}: is of another plan or segment", path.display()));
    }
    Ok(Some(about))
}
