// SPDX-License-Identifier: MPL-2.0

//! The frames of a file, read and decoded as `starsr upscale` does it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use gst::prelude::*;
use gst_app::AppSink;
use indicatif::ProgressBar;

use super::figures::Frame;
use crate::interrupts::Stop;
use crate::media::counts::Counts;
use crate::media::cut::Cut;
use crate::media::elements::{always_pad, make, nowhere, rewrite_caps, sync, text};
use crate::media::errors::{about_input, is_aftermath, missing_plugin};
use crate::media::held::{Held, STREAMS_KNOWN, videos};
use crate::media::input::{self, Kept};
use crate::media::mending::{ContainerColors, complete_colors};
use crate::media::probe::Probe;
use crate::media::reading::Reading;
use crate::media::stall::Watchdog;
use crate::values::{Rate, counted};

/// Interval at which the clock and Ctrl-C are checked.
const TICK: gst::ClockTime = gst::ClockTime::from_mseconds(100);
/// An input that no thread reads is given up after this time, and any other after the second one.
const UNREAD: Duration = Duration::from_secs(3);
const STALLED: Duration = Duration::from_secs(25);
/// How long to wait for a better explanation after an error that explains nothing.
const AFTERMATH: gst::ClockTime = gst::ClockTime::from_mseconds(300);

/// A file to compare, and the part of it that is wanted.
pub struct Source {
    pub path: PathBuf,
    probe: Option<Probe>,
    cut: Option<Cut>,
    rate: Rate,
}

impl Source {
    /// Fails where there is no such file, or it does not have the part.
    pub fn new(path: &Path, cut: Option<Cut>, rate: Rate) -> Result<Self, String> {
        input::check(path).map_err(|reason| format!("{reason}; name a video or a picture"))?;
        let shown = path.display();
        if path.exists() && !path.is_file() {
            return Err(format!("{shown}: is read twice, so it has to be a regular file"));
        }
        let probe = Probe::new(path);
        if let Some(duration) = probe.as_ref().and_then(Probe::duration)
            && let Some(start) = cut.map(|cut| cut.start).filter(|start| *start >= duration)
        {
            return Err(format!(
                "{shown}: is {duration} s long, and would begin at {start} s; choose an earlier --start"
            ));
        }
        Ok(Self { path: path.to_owned(), probe, cut, rate })
    }

    /// When the frames are shown, in ns from the first.
    pub fn times(&self, progress: &ProgressBar, interrupts: &AtomicU32) -> Result<Vec<u64>, Stop> {
        // FFmpeg writes no file at all for a part without frames.
        let mut reader = match Reader::open(self, None, interrupts) {
            Err(Stop::Failed(_)) if self.is_cut_by_ffmpeg() => return Err(self.no_frame().into()),
            reader => reader?,
        };
        let mut times: Vec<u64> = Vec::new();
        while let Some(sample) = reader.next(interrupts)? {
            let segment =
                sample.segment().and_then(|segment| segment.downcast_ref::<gst::ClockTime>());
            let pts = sample.buffer().and_then(|buffer| buffer.pts());
            let time = segment
                .zip(pts)
                .and_then(|(segment, pts)| segment.to_running_time(pts))
                .map_or(0, |time| time.nseconds());
            times.push(time.max(times.last().copied().unwrap_or(0)));
            let frames = counted(times.len() as u64, "frame");
            progress.set_message(format!("{}: {frames} read", self.path.display()));
        }
        let Some(first) = times.first().copied() else {
            return Err(self.no_frame().into());
        };
        Ok(times.into_iter().map(|time| time - first).collect())
    }

    fn is_cut_by_ffmpeg(&self) -> bool {
        let has_video = self.probe.as_ref().is_some_and(|probe| probe.video().is_some());
        has_video && self.cut.is_some()
    }

    fn no_frame(&self) -> String {
        let input = self.path.display();
        match self.cut {
            Some(cut) => format!(
                "{input}: has no frame in the part from {} s on; choose another --start or a longer --duration",
                cut.start
            ),
            None => format!("{input}: no video frame could be decoded; it may be damaged"),
        }
    }

    /// The pictures with these numbers, which rise.
    pub fn pictures(&self, wanted: Vec<usize>, interrupts: &AtomicU32) -> Result<Reader, Stop> {
        Reader::open(self, Some(wanted), interrupts)
    }
}

/// A file that is being decoded.
pub struct Reader {
    path: PathBuf,
    pipeline: gst::Pipeline,
    reading: Reading,
    bus: gst::Bus,
    frames: AppSink,
    counts: Arc<Counts>,
    watchdog: Watchdog,
    missing: Option<String>,
    /// What the source reads, where the source did not open it.
    kept: Kept,
}

impl Drop for Reader {
    fn drop(&mut self) {
        // It cannot fail for the elements used here.
        let _ = self.pipeline.set_state(gst::State::Null);
    }
}

impl Reader {
    /// Opens `source`, for the pictures with the numbers `wanted` or only for the times of all.
    fn open(
        source: &Source,
        wanted: Option<Vec<usize>>,
        interrupts: &AtomicU32,
    ) -> Result<Self, Stop> {
        let pipeline = gst::Pipeline::new();
        let cut = source.cut;
        let (element, kept) = input::source(&source.path, source.probe.as_ref(), cut, source.rate)?;
        let counts: Arc<Counts> = Arc::default();
        let reading = Reading::new(&pipeline, element, &counts, |_| ())?;
        let limits = AppSink::builder().sync(false).max_buffers(2);
        let format =
            if wanted.is_some() { "video/x-raw,format={RGB,Y444}" } else { "video/x-raw(ANY)" };
        let frames = limits.caps(&format.parse::<gst::Caps>().map_err(text)?).build();
        let bus = pipeline.bus().ok_or_else(|| "the pipeline has no bus".to_owned())?;
        let (path, watchdog, missing) = (source.path.clone(), Watchdog::new(), None);
        let mut this =
            Self { path, pipeline, reading, bus, frames, counts, watchdog, missing, kept };
        this.play(gst::State::Paused)?;
        this.settle(interrupts)?;
        let streams = this.reading.take_streams();
        let cut = cut.filter(|_| !this.kept.is_converted());
        this.connect(streams, cut, wanted)?;
        this.play(gst::State::Playing)?;
        Ok(this)
    }

    fn play(&mut self, state: gst::State) -> Result<(), String> {
        // The reason is on the bus.
        self.pipeline.set_state(state).map(|_| ()).map_err(|error| {
            let message = self.bus.pop_filtered(&[gst::MessageType::Error]);
            message.map_or_else(|| error.to_string(), |message| self.worst(message))
        })
    }

    /// Waits until the streams are known.
    fn settle(&mut self, interrupts: &AtomicU32) -> Result<(), Stop> {
        let mut read = Instant::now();
        loop {
            let Some(message) = self.message(TICK, interrupts)? else {
                self.reading.settle(&self.pipeline);
                if self.reading.is_reading() {
                    read = Instant::now();
                }
                if read.elapsed() > UNREAD || self.idle_time() > STALLED {
                    let input = self.path.display();
                    Err(format!(
                        "{input}: no stream could be found in it; it may be damaged or cut off"
                    ))?;
                }
                continue;
            };
            if message.structure().is_some_and(|structure| structure.name() == STREAMS_KNOWN) {
                return Ok(());
            }
        }
    }

    /// The next message, if it is no error.
    fn message(
        &mut self,
        wait: gst::ClockTime,
        interrupts: &AtomicU32,
    ) -> Result<Option<gst::Message>, Stop> {
        if interrupts.load(Ordering::SeqCst) > 0 {
            return Err(Stop::Interrupted);
        }
        let Some(message) = self.bus.timed_pop(wait) else { return Ok(None) };
        self.missing = missing_plugin(&message).or(self.missing.take());
        if message.type_() == gst::MessageType::Error {
            return Err(self.worst(message).into());
        }
        Ok(Some(message))
    }

    /// The sentence for an error, or for one after it where it only says that data stopped flowing.
    fn worst(&self, mut message: gst::Message) -> String {
        while is_aftermath(&message)
            && let Some(next) = self.bus.timed_pop_filtered(AFTERMATH, &[gst::MessageType::Error])
        {
            message = next;
        }
        match message.view() {
            gst::MessageView::Error(error) => {
                about_input(&self.path, &error.error(), self.missing.as_deref())
            }
            _ => format!("{}: cannot be read", self.path.display()),
        }
    }

    fn idle_time(&mut self) -> Duration {
        self.watchdog.idle_time(self.counts.moved())
    }

    /// Decodes the video of `streams`, and nothing else.
    fn connect(
        &self,
        streams: Vec<Held>,
        cut: Option<Cut>,
        wanted: Option<Vec<usize>>,
    ) -> Result<(), String> {
        let (_, video) = videos(&streams);
        let video = video.ok_or_else(|| {
            format!("{}: has no video; name a video or a picture", self.path.display())
        })?;
        let colors = self.reading.colors.clone();
        let mut chain = Vec::new();
        if wanted.is_some() {
            chain = vec![make("videoconvert")?];
            chain[0].set_property_from_str("dither", "none");
            if streams[video].orientation().is_some() {
                let flip = make("videoflip")?;
                flip.set_property_from_str("video-direction", "auto");
                chain.push(flip);
            }
        }
        chain.push(self.frames.clone().upcast());
        self.pipeline.add_many(&chain).map_err(text)?;
        gst::Element::link_many(&chain).map_err(text)?;
        sync(chain.iter().rev())?;
        let first = always_pad(&chain[0], "sink")?;
        let decoder = make("decodebin")?;
        decoder.connect_pad_added(move |decoder, pad| {
            if let Some(cut) = cut {
                cut.clip(pad);
            }
            complete(pad, colors.clone());
            if let Some(wanted) = &wanted {
                select(pad, wanted.clone());
            }
            if let Err(reason) = pad.link(&first) {
                let reason = format!("the decoded video cannot be used: {reason}");
                gst::element_error!(decoder, gst::CoreError::Negotiation, ("{reason}"));
            }
        });
        self.pipeline.add(&decoder).map_err(text)?;
        sync([&decoder])?;
        for (index, stream) in streams.into_iter().enumerate() {
            let target = if index == video {
                always_pad(&decoder, "sink")?
            } else {
                nowhere(self.pipeline.upcast_ref())?
            };
            stream.pad.link(&target).map_err(text)?;
            stream.release();
        }
        Ok(())
    }

    /// The next frame; `None` after the last.
    fn next(&mut self, interrupts: &AtomicU32) -> Result<Option<gst::Sample>, Stop> {
        loop {
            if interrupts.load(Ordering::SeqCst) > 0 {
                return Err(Stop::Interrupted);
            }
            if let Some(sample) = self.frames.try_pull_sample(TICK) {
                self.watchdog.reset();
                return Ok(Some(sample));
            }
            while self.message(gst::ClockTime::ZERO, interrupts)?.is_some() {}
            let idle = self.idle_time();
            // Some demuxers stop at the end of the file without a word.
            if self.frames.is_eos() || idle > UNREAD && !self.reading.is_reading() {
                return Ok(None);
            }
            if idle > STALLED {
                let (input, seconds) = (self.path.display(), STALLED.as_secs());
                return Err(format!("{input}: nothing has come from it for {seconds} s").into());
            }
        }
    }

    /// The next picture. There has to be one.
    pub fn picture(&mut self, interrupts: &AtomicU32) -> Result<Frame, Stop> {
        let Some(sample) = self.next(interrupts)? else {
            let input = self.path.display();
            return Err(format!("{input}: has fewer frames than before; it may be changing").into());
        };
        Ok(Frame::new(sample)?)
    }
}

/// Completes the colours of the frames that leave `decoder` with what the container says.
fn complete(decoder: &gst::Pad, container: ContainerColors) {
    rewrite_caps(decoder, move |caps| complete_colors(caps, &(*container.lock())?));
}

/// Lets only the frames with the numbers `wanted` leave `decoder`, and ends after the last.
fn select(decoder: &gst::Pad, wanted: Vec<usize>) {
    let next = AtomicUsize::new(0);
    decoder.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
        let number = next.fetch_add(1, Ordering::SeqCst);
        if wanted.last().is_none_or(|last| number > *last) {
            if wanted.last().is_none_or(|last| number == last + 1) {
                pad.push_event(gst::event::Eos::new());
            }
            info.flow_res = Err(gst::FlowError::Eos);
            return gst::PadProbeReturn::Handled;
        }
        if wanted.binary_search(&number).is_ok() {
            gst::PadProbeReturn::Ok
        } else {
            gst::PadProbeReturn::Drop
        }
    });
}
