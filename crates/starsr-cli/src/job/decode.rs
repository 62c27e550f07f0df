// SPDX-License-Identifier: MPL-2.0

//! The frames of a film from any place on, each compared with the plan.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use gst::prelude::*;
use gst_app::AppSink;
use gst_video::VideoInfo;

use super::frames::{Frames, pixels};
use crate::interrupts::{Interrupts, Stop};
use crate::media::converter::is_converted;
use crate::media::probe::{MATROSKA, Probe, QUICKTIME};
use crate::upscale::Args;
use crate::upscale::batch;
use crate::upscale::file::probe;
use crate::upscale::messages::{Event, Listener};
use crate::upscale::pipeline::{Destination, Pipeline};
use crate::upscale::progress::Progress;

/// Decoded frames that wait to be restored.
const AHEAD: u32 = 4;
/// How long to wait for a frame before looking at messages.
const TICK: gst::ClockTime = gst::ClockTime::from_mseconds(20);
/// Frames that are decoded and left out rather than seeking behind them.
const NEAR: u64 = 250;
/// How much earlier than the first frame decoding begins: first where a key frame is enough, and then
/// where frames turn out to depend on more.
const LEADS: [gst::ClockTime; 2] = [gst::ClockTime::ZERO, gst::ClockTime::from_seconds(12)];

/// Bytes of frames that were read last, which the next segment may begin with.
const RECENT: usize = 64 << 20;

/// A frame, at its time in the film.
pub struct Decoded {
    pub buffer: gst::Buffer,
    pub number: u64,
}

/// Reads frames, in rising order as a rule.
pub struct Decoder<'a> {
    args: &'a Args,
    job: &'a batch::Job,
    frames: &'a Frames,
    interrupts: &'a Interrupts,
    probe: Option<Probe>,
    /// Whether the container is one in which GStreamer finds a place well.
    seeks: bool,
    open: Option<Open<'a>>,
    /// The place of the frame to give next.
    next: u64,
    recent: Recent,
}

/// Frames that were read last, without a gap.
#[derive(Default)]
struct Recent {
    /// The place of the first.
    first: u64,
    frames: VecDeque<gst::Buffer>,
    bytes: usize,
}

impl Recent {
    fn get(&self, place: u64) -> Option<&gst::Buffer> {
        self.frames.get(usize::try_from(place.checked_sub(self.first)?).ok()?)
    }

    /// Adds the frame at `place`.
    fn push(&mut self, place: u64, frame: &gst::Buffer) {
        if place != self.first + self.frames.len() as u64 {
            *self = Self { first: place, ..Self::default() };
        }
        // The decoder may need its own memory.
        let Ok(copy) = frame.copy_deep() else { return *self = Self::default() };
        self.bytes += copy.size();
        self.frames.push_back(copy);
        while self.bytes > RECENT
            && let Some(frame) = self.frames.pop_front()
        {
            self.bytes -= frame.size();
            self.first += 1;
        }
    }
}

/// An input that is being decoded.
struct Open<'a> {
    listener: Listener<'a>,
    pipeline: Pipeline,
    progress: Progress,
    sink: AppSink,
    /// The place in the film of the next frame, where it is known.
    next: Option<u64>,
    /// A frame that was looked at before its turn.
    peeked: Option<gst::Sample>,
}

impl<'a> Open<'a> {
    fn new(
        args: &'a Args,
        job: &'a batch::Job,
        probe: Option<&Probe>,
        interrupts: &Interrupts,
    ) -> Result<Self, Stop> {
        let pipeline = Pipeline::open(args, &job.source, probe)?;
        let mut listener = Listener::new(args, job, &pipeline, false);
        let mut progress = Progress::silent();
        let sink = AppSink::builder().sync(false).max_buffers(AHEAD).build();
        loop {
            match listener.step(&pipeline, &mut progress, &interrupts.count, TICK)? {
                None => {}
                Some(Event::StreamsKnown) => break,
                Some(_) => return Err(format!("{}: has no video", job.input.display()).into()),
            }
        }
        let connected = pipeline.connect(args, job, &Destination::Frames(sink.upcast_ref()));
        connected.map_err(|reason| listener.explain(reason))?;
        Ok(Self { listener, pipeline, progress, sink, next: Some(0), peeked: None })
    }

    /// The next frame in the file.
    fn sample(&mut self, interrupts: &Interrupts) -> Result<Option<gst::Sample>, Stop> {
        let sample = self.peek(interrupts)?;
        self.peeked = None;
        Ok(sample)
    }

    /// The same, which stays the next one.
    fn peek(&mut self, interrupts: &Interrupts) -> Result<Option<gst::Sample>, Stop> {
        while self.peeked.is_none() {
            if interrupts.count.load(Ordering::SeqCst) > 0 {
                return Err(Stop::Interrupted);
            }
            self.peeked = self.sink.try_pull_sample(TICK);
            if self.peeked.is_none() {
                let wait = gst::ClockTime::ZERO;
                self.listener.step(&self.pipeline, &mut self.progress, &interrupts.count, wait)?;
                if self.sink.is_eos() {
                    break;
                }
            }
        }
        Ok(self.peeked.clone())
    }
}

impl<'a> Decoder<'a> {
    pub fn new(
        args: &'a Args,
        job: &'a batch::Job,
        frames: &'a Frames,
        interrupts: &'a Interrupts,
    ) -> Result<Self, Stop> {
        let probe = probe(args, job, &interrupts.count)?;
        let seeks = args.raw_input.is_none()
            && probe.as_ref().is_some_and(|probe| {
                [QUICKTIME, MATROSKA].contains(&probe.format()) && !is_converted(probe, args.cut())
            });
        Ok(Self {
            args,
            job,
            frames,
            interrupts,
            probe,
            seeks,
            open: None,
            next: 0,
            recent: Recent::default(),
        })
    }

    /// Makes the frame at `place` of the film the next one.
    pub fn seek(&mut self, place: u64) -> Result<(), Stop> {
        self.next = place;
        // From there on to what is read next.
        if self.recent.get(place).is_some() {
            return Ok(());
        }
        self.recent = Recent::default();
        let next = self.open.as_ref().and_then(|open| open.next);
        let is_near = next.is_some_and(|next| (next..next + NEAR).contains(&place));
        if !is_near && self.seeks {
            for lead in LEADS {
                if self.seek_in_file(place, lead)? {
                    return Ok(());
                }
            }
        }
        if next.is_none_or(|next| next > place) || !is_near && self.seeks {
            self.open = None;
        }
        let interrupts = self.interrupts;
        loop {
            let open = self.open()?;
            let next = open.next.unwrap_or(0);
            if next == place {
                return Ok(());
            }
            let sample = open.sample(interrupts)?;
            open.next = Some(next + 1);
            if sample.is_none() {
                return Err(self.differs(next));
            }
        }
    }

    /// The next frame, which is the one of the plan.
    pub fn next(&mut self) -> Result<Decoded, Stop> {
        let place = self.next;
        let Some(record) = self.frames.get(place) else { return Err(self.differs(place)) };
        self.next = place + 1;
        let (number, known) = (record.number, self.recent.get(place).cloned());
        if let Some(buffer) = known {
            return Ok(Decoded { buffer, number });
        }
        let interrupts = self.interrupts;
        let open = self.open()?;
        if open.next != Some(place) {
            return Err(self.differs(place));
        }
        let sample = open.sample(interrupts)?;
        open.next = Some(place + 1);
        let found = sample.as_ref().and_then(frame);
        let Some((buffer, ..)) = found
            .filter(|(_, stream, pixels)| (*stream, *pixels) == (record.stream, record.pixels))
        else {
            return Err(self.differs(place));
        };
        let mut buffer = buffer.to_owned();
        let frame = buffer.make_mut();
        frame.set_pts(gst::ClockTime::from_nseconds(record.running));
        frame.set_dts(gst::ClockTime::NONE);
        frame.set_duration(record.duration.map(gst::ClockTime::from_nseconds));
        // Where clips begin is in the plan.
        frame.unset_flags(gst::BufferFlags::DISCONT | gst::BufferFlags::RESYNC);
        self.recent.push(place, &buffer);
        Ok(Decoded { buffer, number })
    }

    fn differs(&mut self, place: u64) -> Stop {
        // Another attempt reads from the beginning.
        (self.open, self.recent, self.seeks) = (None, Recent::default(), false);
        let input = self.job.input.display();
        let reason = format!(
            "{input}: its frame {place} is not decoded as it was for the plan; use the same version of GStreamer and its plugins"
        );
        reason.into()
    }

    /// Seeks in the file, to the key frame in front of the frame at `place`; whether that frame comes
    /// next then.
    fn seek_in_file(&mut self, place: u64, lead: gst::ClockTime) -> Result<bool, Stop> {
        let (interrupts, frames) = (self.interrupts, self.frames);
        let Some(record) = frames.get(place) else { return Ok(false) };
        let open = self.open()?;
        let target = gst::ClockTime::from_nseconds(record.stream).saturating_sub(lead);
        let flags = gst::SeekFlags::FLUSH | gst::SeekFlags::KEY_UNIT | gst::SeekFlags::SNAP_BEFORE;
        let (set, none) = (gst::SeekType::Set, gst::SeekType::None);
        let seek = gst::event::Seek::new(1.0, flags, set, target, none, gst::ClockTime::NONE);
        // Through the pipeline the demuxer would get it from every stream.
        if !open.sink.send_event(seek) {
            return Ok(false);
        }
        (open.next, open.peeked) = (None, None);
        while let Some(sample) = open.peek(interrupts)? {
            let Some((_, stream, pixels)) = frame(&sample) else { return Ok(false) };
            if (stream, pixels) == (record.stream, record.pixels) {
                open.next = Some(place);
                return Ok(true);
            }
            if stream > record.stream {
                return Ok(false);
            }
            open.peeked = None;
        }
        Ok(false)
    }

    /// The input, decoded from its beginning if it is not open.
    fn open(&mut self) -> Result<&mut Open<'a>, Stop> {
        let open = match self.open.take() {
            Some(open) => open,
            None => Open::new(self.args, self.job, self.probe.as_ref(), self.interrupts)?,
        };
        Ok(self.open.insert(open))
    }
}

/// The buffer of a sample, when the input shows it, in ns, and the hash of its pixels.
fn frame(sample: &gst::Sample) -> Option<(&gst::BufferRef, u64, u64)> {
    let info = VideoInfo::from_caps(sample.caps()?).ok()?;
    let segment = sample.segment()?.downcast_ref::<gst::ClockTime>()?;
    let buffer = sample.buffer()?;
    let time = segment.to_stream_time(buffer.pts()?)?;
    Some((buffer, time.nseconds(), pixels(buffer, &info)?))
}
