// SPDX-License-Identifier: MPL-2.0

//! `starsr upscale` with a job: plan, workers and join in one command, which goes on where it was
//! interrupted.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use gststarsr::planning::Outline;
use serde_json::json;

use super::claims;
use super::join::{check_output, join};
use super::make::make_plan;
use super::plan::Job;
use super::status::Status;
use super::store;
use super::work::{Failed, Machine, Worker, check_model, checked};
use crate::interrupts::{Interrupts, Stop};
use crate::media::elements::make;
use crate::media::input;
use crate::output::Output;
use crate::upscale::Args as Options;
use crate::upscale::batch;
use crate::upscale::progress::{Progress, State};
use crate::values::counted;

/// Interval at which the workers and their progress are looked at.
const TICK: Duration = Duration::from_millis(100);
const LOOK: u32 = 10;

/// Upscales `files` in segments.
pub fn run(options: &Options, files: &batch::Job, interrupts: &Interrupts) -> Result<(), Stop> {
    input::check(&files.input)?;
    check_output(options, &files.output)?;
    let folder = match &options.job {
        Some(folder) => folder.clone(),
        None => folder_beside(&files.output),
    };
    if options.resume && !options.force && Job::exists(&folder) {
        let job = Job::open(&folder)?;
        if job.is_joined(&files.output) {
            check_same(&job, options, &files.source)?;
            return fs::remove_dir_all(&folder).map_err(|e| store::failed(&folder, &e).into());
        }
    }
    // Fails at once where the output may not be written.
    drop(Output::create(&[&files.source], &files.output, options.force)?);
    let mut progress = Progress::new(options, false);
    let goes_on = Job::exists(&folder);
    if !goes_on {
        make_plan(options, &files.source, &folder, &mut progress, interrupts)?;
    }
    let job = Job::open(&folder)?;
    if goes_on {
        check_same(&job, options, &files.source)?;
        find(&job, &progress)?;
    } else {
        describe(&job, &progress);
    }
    progress.expect_frames(job.plan.video.frames);
    work(&job, options, &files.source, &mut progress, interrupts)?;
    let mut joining = job.args()?;
    (joining.quiet, joining.json, joining.force) = (options.quiet, options.json, options.force);
    join(&job, &joining, &files.source, &files.output, &mut progress, interrupts)?;
    if options.resume {
        fs::remove_dir_all(&folder).map_err(|error| store::failed(&folder, &error))?;
    } else {
        job.remove_unfinished();
    }
    Ok(())
}

/// The folder of the job for `output`.
fn folder_beside(output: &Path) -> PathBuf {
    let mut name: OsString = output.file_name().unwrap_or_default().to_owned();
    name.push(".job");
    output.with_file_name(name)
}

/// Fails where the options or the input are not those of the plan.
pub fn check_same(job: &Job, options: &Options, input: &Path) -> Result<(), String> {
    let folder = job.folder.display();
    job.plan.input.check_whole(input)?;
    if let Some(difference) = options.given.difference(&job.plan.options) {
        return Err(format!(
            "{folder}: is a job with other settings: {difference}; give the same ones, or another folder"
        ));
    }
    let starsr = make("starsr")?;
    options.configure(&starsr)?;
    check_model(&job.plan, &Outline::new(&starsr)?)
}

/// Says what the plan is.
pub fn describe(job: &Job, progress: &Progress) {
    let plan = &job.plan;
    let fed: u64 = plan.segments.iter().map(|s| s.context.end - s.context.start).sum();
    let twice = (fed - plan.video.frames) as f64 / plan.video.frames.max(1) as f64 * 100.0;
    let segments = counted(plan.segments.len() as u64, "segment");
    let scenes = counted(plan.clips.len() as u64, "scene");
    let frames = counted(plan.video.frames, "frame");
    let folder = job.folder.display();
    progress.announce(
        &format!("{folder}: {frames} in {scenes}, {segments}; {twice:.1}% are restored twice"),
        "plan",
        json!({
            "job": job.folder.to_string_lossy(),
            "frames": plan.video.frames,
            "scenes": plan.clips.len(),
            "segments": plan.segments.len(),
            "restored_twice": fed - plan.video.frames,
        }),
    );
}

/// Looks at what is there of a job that goes on, says so, and lets failed segments be tried again.
fn find(job: &Job, progress: &Progress) -> Result<(), String> {
    job.remove_unfinished();
    let (mut parts, mut frames, count) = (0, 0, job.plan.segments.len());
    for segment in 0..count {
        match checked(job, segment, true) {
            Ok(Some(about)) => {
                parts += 1;
                frames += about.frames;
            }
            Ok(None) => {}
            Err(reason) => {
                let part = job.part(segment);
                fs::remove_file(&part).map_err(|error| store::failed(&part, &error))?;
                progress.say(&format!("{reason}; the segment is restored again"));
            }
        }
        if Failed::of(job, segment).is_some() {
            let failure = job.failure(segment);
            fs::remove_file(&failure).map_err(|error| store::failed(&failure, &error))?;
        }
    }
    let folder = job.folder.display();
    let (segments, all) = (counted(count as u64, "segment"), job.plan.video.frames);
    progress.announce(
        &format!("{folder}: goes on: {parts} of {segments} are done, {frames} of {all} frames"),
        "resume",
        json!({
            "job": job.folder.to_string_lossy(),
            "segments_done": parts,
            "segments": count,
            "frames_done": frames,
            "frames": all,
        }),
    );
    Ok(())
}

/// Restores what is left, here or in other processes.
fn work(
    job: &Job,
    options: &Options,
    source: &Path,
    progress: &mut Progress,
    interrupts: &Interrupts,
) -> Result<(), Stop> {
    if options.workers.unwrap_or(1) > 1 || !options.devices.is_empty() {
        return Crew::new(job, options, source)?.run(job, progress, interrupts);
    }
    let machine = Machine::of(options).options(job)?;
    let done: Arc<AtomicU64> = Arc::default();
    let source = source.to_owned();
    let mut worker = Worker::new(job, &machine, source, claims::LEASE, &done, interrupts)?;
    let before = Status::of(job)?.frames_done;
    let finished = AtomicU64::new(before);
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            worker.all(&|segment| {
                done.store(0, Ordering::SeqCst);
                finished.fetch_add(segment.about.frames, Ordering::SeqCst);
            })
        });
        while !worker.is_finished() {
            let now = finished.load(Ordering::SeqCst) + done.load(Ordering::SeqCst);
            progress.update(state(now, before));
            thread::sleep(TICK);
        }
        worker.join().unwrap_or_else(|_| Err(Stop::Failed("the worker has ended".to_owned())))
    })
}

/// The state of a job of which `done` frames are done, `before` of them by earlier runs.
fn state(done: u64, before: u64) -> State {
    State { taken: done, done, before, ..State::default() }
}

/// Worker processes.
struct Crew {
    workers: Vec<Child>,
}

impl Drop for Crew {
    fn drop(&mut self) {
        for worker in &mut self.workers {
            // It may have ended already.
            drop(worker.stdin.take());
            let _ = worker.wait();
        }
    }
}

impl Crew {
    fn new(job: &Job, options: &Options, source: &Path) -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let machine = Machine::of(options);
        let each = options.workers.unwrap_or(1);
        let devices: Vec<Option<u32>> = match options.devices.as_slice() {
            [] => vec![None],
            devices => devices.iter().copied().map(Some).collect(),
        };
        let count = devices.len() * each as usize;
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let mut crew = Self { workers: Vec::new() };
        for number in 0..count {
            let mut machine = machine.clone();
            // The cores that are left over go to the first ones.
            let share = cores / count + usize::from(number < cores % count);
            machine.threads.get_or_insert_with(|| share.max(1).to_string());
            let device = devices[number % devices.len()];
            machine.set.extend(device.map(|device| ("device".to_owned(), device.to_string())));
            let mut command = Command::new(&program);
            command.args(["work", "--attached", "--quiet", "--job"]).arg(&job.folder);
            command.arg("--input").arg(source).args(machine.words());
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
            let worker = command.spawn().map_err(|error| format!("no worker starts: {error}"))?;
            crew.workers.push(worker);
        }
        Ok(crew)
    }

    /// Waits for the workers, the progress being kept up to date.
    fn run(
        mut self,
        job: &Job,
        progress: &mut Progress,
        interrupts: &Interrupts,
    ) -> Result<(), Stop> {
        let before = Status::of(job)?.frames_done;
        let mut rounds = 0;
        let mut reasons: Vec<String> = Vec::new();
        while !self.workers.is_empty() {
            if interrupts.count.load(Ordering::SeqCst) > 0 {
                return Err(Stop::Interrupted);
            }
            let mut running = Vec::new();
            for mut worker in std::mem::take(&mut self.workers) {
                match worker.try_wait() {
                    Ok(None) => running.push(worker),
                    Ok(Some(status)) if status.success() => {}
                    Ok(Some(status)) => reasons.push(last_words(worker, &status.to_string())),
                    Err(error) => reasons.push(error.to_string()),
                }
            }
            self.workers = running;
            if rounds % LOOK == 0 {
                progress.update(state(Status::of(job)?.frames_so_far(), before));
            }
            rounds += 1;
            thread::sleep(TICK);
        }
        let done = Status::of(job)?.done.len();
        match reasons.first() {
            Some(reason) if done < job.plan.segments.len() => Err(reason.clone().into()),
            Some(reason) => {
                let number = counted(reasons.len() as u64, "worker");
                progress.say(&format!("{number} failed, and others did the work: {reason}"));
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// Why a worker ended.
fn last_words(worker: Child, status: &str) -> String {
    let words = worker.wait_with_output().map(|output| output.stderr).unwrap_or_default();
    let words = String::from_utf8_lossy(&words);
    let last = words.lines().rfind(|line| line.starts_with("starsr: "));
    match last {
        Some(last) => last.trim_start_matches("starsr: ").to_owned(),
        None => format!("a worker ended with {status}"),
    }
}
