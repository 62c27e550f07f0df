// SPDX-License-Identifier: MPL-2.0

//! Buffers, events, properties and state changes in any order.

use std::collections::VecDeque;

use arbitrary::Arbitrary;
use gst::prelude::*;

use crate::fixtures;
use crate::rig::{self, FRAME, Item, Rig};

/// How the element is set up and what happens to it.
#[derive(Debug, Arbitrary)]
pub struct Input {
    length: u8,
    overlap: u8,
    wavefront: bool,
    text: bool,
    scenes: bool,
    bypass: bool,
    live: Option<u32>,
    steps: Vec<Step>,
}

#[derive(Debug, Arbitrary)]
enum Step {
    Push { time: Time, duration: Option<u32>, flags: u8, level: u8 },
    Frames(u8),
    WrongSize(u8),
    Start(u8),
    Caps(u8),
    Segment(Segment),
    Gap(Time),
    FlushStart,
    FlushStop(bool),
    Eos,
    StreamStart(u8),
    StreamGroupDone,
    SegmentDone(Time),
    Still(bool),
    SceneCut,
    Custom(bool),
    Tag(u8),
    Toc,
    Reconfigure,
    Qos(i32, f64),
    Seek,
    Flow(u8),
    Property(u8, u8),
    State(u8),
    Query(u8),
    Live(Option<u32>),
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Time {
    Next,
    None,
    Same,
    Jump(u16),
    Any(u64),
}

#[derive(Debug, Arbitrary)]
struct Segment {
    format: u8,
    rate: f64,
    applied_rate: f64,
    base: u64,
    offset: Option<u64>,
    start: Option<u64>,
    stop: Option<u64>,
    time: Option<u64>,
    position: Option<u64>,
    flags: u32,
}

/// Caps of frames; the last ones are refused.
const CAPS: [&str; 8] = [
    rig::CAPS,
    "video/x-raw,format=I420,width=16,height=8,framerate=30000/1001",
    "video/x-raw,format=GRAY8,width=8,height=8,framerate=0/1",
    "video/x-raw,format=RGBA,width=10,height=6,framerate=1/1",
    "video/x-raw,format=NV12,width=3,height=1,framerate=2147483647/1",
    "video/x-raw,format=GRAY8,width=8,height=8,framerate=1/2147483647",
    "video/x-raw,format=I420,width=16,height=8,framerate=25/1,interlace-mode=interleaved",
    "video/x-raw,format=I420,width=2000000,height=8,framerate=25/1",
];

/// What went in and has not come out.
#[derive(Debug)]
enum Inside {
    Frame { offset: u64, pts: Option<gst::ClockTime>, duration: Option<gst::ClockTime> },
    Event(gst::Seqnum),
}

/// An element and what it owes.
struct Player {
    rig: Rig,
    inside: VecDeque<Inside>,
    /// How many of those, from the first on, need not come out: a flush or an error has been since.
    lost: usize,
    /// Size of a frame as the caps say.
    size: usize,
    next: u64,
    time: Option<gst::ClockTime>,
    flow: Result<gst::FlowSuccess, gst::FlowError>,
}

impl Time {
    fn of(self, player: &Player) -> Option<gst::ClockTime> {
        match self {
            Self::Next => {
                Some(player.time.map_or(gst::ClockTime::ZERO, |t| t.saturating_add(FRAME)))
            }
            Self::None => None,
            Self::Same => player.time,
            Self::Jump(frames) => Some(FRAME * u64::from(frames)),
            Self::Any(time) => time_of(time),
        }
    }
}

fn time_of(nanoseconds: u64) -> Option<gst::ClockTime> {
    (nanoseconds != u64::MAX).then(|| gst::ClockTime::from_nseconds(nanoseconds))
}

impl Segment {
    fn event(&self) -> gst::Event {
        let rate = |rate: f64| if rate == 0.0 || rate.is_nan() { 1.0 } else { rate };
        let mut segment = gst::Segment::new();
        match self.format % 4 {
            3 => segment.set_format(gst::Format::Bytes),
            _ => segment.set_format(gst::Format::Time),
        }
        segment.set_flags(gst::SegmentFlags::from_bits_truncate(self.flags));
        segment.set_rate(rate(self.rate));
        segment.set_applied_rate(rate(self.applied_rate));
        if let Some(segment) = segment.downcast_mut::<gst::ClockTime>() {
            segment.set_base(time_of(self.base));
            segment.set_offset(self.offset.and_then(time_of).unwrap_or(gst::ClockTime::ZERO));
            segment.set_start(self.start.and_then(time_of).unwrap_or(gst::ClockTime::ZERO));
            segment.set_stop(self.stop.and_then(time_of));
            segment.set_time(self.time.and_then(time_of));
            segment.set_position(self.position.and_then(time_of));
        }
        gst::event::Segment::new(&segment)
    }
}

/// Sets a property that may be set at any time, or takes effect with the next start.
fn set_property(element: &gst::Element, property: u8, value: u8) {
    let number = u32::from(value);
    match property % 19 {
        0 => element.set_property("window-length", number % 9),
        1 => element.set_property("window-overlap", i32::from(value % 9) - 1),
        2 => element.set_property_from_str(
            "window-mode",
            ["default", "blend", "wavefront"][usize::from(value % 3)],
        ),
        3 => element.set_property("processing-latency", u64::from(value) << (value % 57)),
        4 => element.set_property_from_str("prompt", "a panda plays the guitar"),
        5 => element.set_property("prompt", None::<&str>),
        6 => element.set_property("negative-prompt", Some("&amp; ".repeat(usize::from(value)))),
        7 => element.set_property_from_str(
            "prompt-suffix",
            ["spaced", "glued", "none"][usize::from(value % 3)],
        ),
        8 => element.set_property("steps", number % 4),
        9 => element.set_property("strength", f32::from(value) / 127.0 - 1.0),
        10 => element.set_property("tile-size", number),
        11 => element.set_property("tile-overlap", i32::from(value) - 1),
        12 => element.set_property("scale", number % 9),
        13 => element.set_property("scene-detection", value.is_multiple_of(2)),
        14 => {
            element.set_property_from_str("overload", ["block", "bypass"][usize::from(value % 2)]);
        }
        15 => element.set_property("decode-overlap", i32::from(value % 4) - 1),
        16 => element.set_property_from_str(
            "color-fix",
            ["none", "adain", "wavelet"][usize::from(value % 3)],
        ),
        17 => element.set_property("read-ahead", value.is_multiple_of(2)),
        _ => element.set_property("noise-level", number * 4),
    }
}

impl Player {
    fn new(input: &Input) -> Self {
        let length = u32::from(input.length % 8) + 1;
        let wavefront = input.wavefront;
        let most = if wavefront { length - 1 } else { length / 2 };
        let element = rig::starsr(length, (u32::from(input.overlap) % (most + 1)) as i32);
        if input.text {
            element.set_property("model-path", fixtures::text().to_str().unwrap());
        }
        element.set_property_from_str("window-mode", if wavefront { "wavefront" } else { "blend" });
        element.set_property("scene-detection", input.scenes);
        element.set_property("read-ahead", input.steps.len().is_multiple_of(2));
        if input.bypass && !wavefront {
            element.set_property_from_str("overload", "bypass");
        }
        let rig = Rig::new(element, None);
        rig.set_upstream_latency(input.live.map(|ns| gst::ClockTime::from_nseconds(ns.into())));
        Self {
            rig,
            inside: VecDeque::new(),
            lost: 0,
            size: 16,
            next: 0,
            time: None,
            flow: Ok(gst::FlowSuccess::Ok),
        }
    }

    fn push(
        &mut self,
        mut buffer: gst::Buffer,
        pts: Option<gst::ClockTime>,
        duration: Option<gst::ClockTime>,
    ) {
        let offset = self.next;
        self.next += 1;
        if pts.is_some() {
            self.time = pts;
        }
        let b = buffer.make_mut();
        b.set_pts(pts);
        b.set_duration(duration);
        b.set_offset(offset);
        self.inside.push_back(Inside::Frame { offset, pts, duration });
        if self.rig.push(buffer).is_err() {
            self.lost = self.inside.len();
        }
    }

    fn frame(&mut self, time: Time, duration: Option<u32>, flags: u8, level: u8) {
        let mut buffer = gst::Buffer::from_mut_slice(vec![level; self.size]);
        let flags = [
            gst::BufferFlags::empty(),
            gst::BufferFlags::DISCONT,
            gst::BufferFlags::GAP,
            gst::BufferFlags::CORRUPTED | gst::BufferFlags::MARKER,
            gst::BufferFlags::DROPPABLE | gst::BufferFlags::RESYNC,
        ][usize::from(flags % 5)];
        buffer.make_mut().set_flags(flags);
        let pts = time.of(self);
        self.push(buffer, pts, duration.map(|ns| gst::ClockTime::from_nseconds(ns.into())));
    }

    /// Sends an event; one that is to keep its place is awaited.
    fn event(&mut self, event: gst::Event, awaited: bool) -> bool {
        if awaited {
            self.inside.push_back(Inside::Event(event.seqnum()));
        }
        let taken = self.rig.event(event);
        if awaited && !taken {
            self.lost = self.inside.len();
        }
        taken
    }

    /// Sends an event before which everything must leave.
    fn barrier(&mut self, event: gst::Event) {
        let taken = self.event(event, false);
        self.settle();
        assert!(
            !taken || self.inside.len() == self.lost,
            "left inside: {:?}, {} lost",
            self.inside,
            self.lost
        );
    }

    fn caps(&mut self, choice: u8) {
        let caps: gst::Caps = CAPS[usize::from(choice) % CAPS.len()].parse().unwrap();
        self.size =
            gst_video::VideoInfo::from_caps(&caps).map_or(16, |info| info.size()).min(1 << 12);
        self.event(gst::event::Caps::new(&caps), false);
    }

    fn state(&mut self, choice: u8) {
        use gst::State::{Null, Paused, Playing, Ready};

        let state = [Playing, Paused, Playing, Ready, Null][usize::from(choice % 5)];
        if self.rig.element.set_state(state).is_err() || state < Paused {
            self.lost = self.inside.len();
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Push { time, duration, flags, level } => {
                self.frame(*time, *duration, *flags, *level);
            }
            Step::Frames(count) => {
                (0..count % 12).for_each(|_| self.frame(Time::Next, Some(1), 0, 90));
            }
            Step::WrongSize(bytes) => {
                let bytes = usize::from(*bytes);
                let buffer = gst::Buffer::from_mut_slice(vec![7; bytes]);
                let pts = Time::Next.of(self);
                self.push(buffer, pts, None);
            }
            Step::Start(caps) => {
                self.event(gst::event::StreamStart::new("test"), false);
                self.caps(*caps);
                self.rig.segment(gst::ClockTime::ZERO);
            }
            Step::Caps(choice) => self.caps(*choice),
            Step::Segment(segment) => drop(self.event(segment.event(), false)),
            Step::Gap(time) => {
                let time = time.of(self).unwrap_or(gst::ClockTime::ZERO);
                self.barrier(gst::event::Gap::new(time, FRAME));
            }
            Step::FlushStart => {
                self.lost = self.inside.len();
                self.event(gst::event::FlushStart::new(), false);
            }
            Step::FlushStop(reset) => {
                self.lost = self.inside.len();
                self.event(gst::event::FlushStop::new(*reset), false);
            }
            Step::Eos => self.barrier(gst::event::Eos::new()),
            Step::StreamStart(id) => self.barrier(gst::event::StreamStart::new(&id.to_string())),
            Step::StreamGroupDone => {
                self.barrier(gst::event::StreamGroupDone::new(gst::GroupId::next()));
            }
            Step::SegmentDone(time) => self.barrier(gst::event::SegmentDone::new(time.of(self))),
            Step::Still(still) => {
                self.event(gst_video::StillFrameEvent::builder(*still).build(), true);
            }
            Step::SceneCut => {
                let name = gst::Structure::new_empty("starsr-scene-cut");
                self.event(gst::event::CustomDownstream::new(name), true);
            }
            Step::Custom(sticky) => {
                let name = gst::Structure::new_empty("custom");
                if *sticky {
                    self.event(gst::event::CustomDownstreamSticky::new(name), false);
                } else {
                    self.event(gst::event::CustomDownstream::new(name), true);
                }
            }
            Step::Tag(title) => {
                let mut tags = gst::TagList::new();
                let title = title.to_string();
                tags.make_mut()
                    .add::<gst::tags::Title>(&title.as_str(), gst::TagMergeMode::Replace);
                self.event(gst::event::Tag::new(tags), false);
            }
            Step::Toc => {
                let toc = gst::Toc::new(gst::TocScope::Global);
                self.event(gst::event::Toc::new(&toc, false), false);
            }
            Step::Reconfigure => drop(self.rig.sink.push_event(gst::event::Reconfigure::new())),
            Step::Qos(difference, proportion) => {
                let time = self.time.unwrap_or(gst::ClockTime::ZERO);
                let earliest = -i64::try_from(time.nseconds()).unwrap_or(i64::MAX);
                let difference = i64::from(*difference).max(earliest);
                let event =
                    gst::event::Qos::builder(gst::QOSType::Underflow, *proportion, difference);
                self.rig.sink.push_event(event.timestamp(time).build());
            }
            Step::Seek => {
                let none = gst::ClockTime::NONE;
                let seek = gst::event::Seek::new(
                    1.0,
                    gst::SeekFlags::FLUSH,
                    gst::SeekType::Set,
                    gst::ClockTime::ZERO,
                    gst::SeekType::None,
                    none,
                );
                self.rig.sink.push_event(seek);
            }
            Step::Flow(choice) => {
                use gst::FlowError::{CustomError, Eos, Error, Flushing, NotLinked, NotNegotiated};

                let errors = [Eos, Error, Flushing, NotLinked, NotNegotiated, CustomError];
                self.flow = match errors.get(usize::from(choice % 12)) {
                    Some(error) => Err(*error),
                    None => Ok(gst::FlowSuccess::Ok),
                };
                self.rig.set_flow(self.flow);
            }
            Step::Property(property, value) => set_property(&self.rig.element, *property, *value),
            Step::State(choice) => self.state(*choice),
            Step::Query(choice) => self.query(*choice),
            Step::Live(latency) => {
                let latency = latency.map(|ns| gst::ClockTime::from_nseconds(ns.into()));
                self.rig.set_upstream_latency(latency);
            }
        }
        self.settle();
    }

    fn query(&self, choice: u8) {
        match choice % 6 {
            0 => drop(self.rig.sink.peer_query(&mut gst::query::Latency::new())),
            1 => drop(self.rig.sink.peer_query(&mut gst::query::Position::new(gst::Format::Time))),
            2 => drop(self.rig.sink.peer_query(&mut gst::query::Duration::new(gst::Format::Time))),
            3 => drop(self.rig.sink.peer_query(&mut gst::query::Segment::new(gst::Format::Time))),
            4 => {
                let caps = CAPS[0].parse().unwrap();
                self.rig.src.peer_query(&mut gst::query::Allocation::new(Some(&caps), true));
            }
            _ => drop(self.rig.src.peer_query(&mut gst::query::Drain::new())),
        }
    }

    /// Compares what has come out with what went in.
    fn settle(&mut self) {
        if !super::errors(&self.rig).is_empty() || self.flow.is_err() {
            self.lost = self.inside.len();
        }
        for item in self.rig.items() {
            match item {
                Item::Buffer(buffer) => {
                    let found = self.take(
                        |i| matches!(i, Inside::Frame { offset, .. } if *offset == buffer.offset()),
                    );
                    let Inside::Frame { pts, duration, .. } = found else { unreachable!() };
                    assert_eq!(
                        (buffer.pts(), buffer.duration()),
                        (pts, duration),
                        "frame {}",
                        buffer.offset()
                    );
                }
                Item::Event(event) => {
                    let awaited = |i: &Inside| matches!(i, Inside::Event(seqnum) if *seqnum == event.seqnum());
                    if self.inside.iter().any(awaited) {
                        self.take(awaited);
                    }
                }
            }
        }
        self.rig.forget();
    }

    /// Takes what has come out; before it only what is lost may be left.
    fn take(&mut self, is: impl Fn(&Inside) -> bool) -> Inside {
        let place = self
            .inside
            .iter()
            .position(is)
            .expect("what comes out went in and has not come out before");
        assert!(
            place <= self.lost,
            "{:?} are missing",
            &self.inside.make_contiguous()[self.lost..place]
        );
        self.lost = self.lost.saturating_sub(place + 1);
        self.inside.drain(..place);
        self.inside.pop_front().unwrap()
    }
}

/// Plays it all: no panic, and frames and serialized events come out once, in order, with their own
/// times.
pub fn run(input: &Input) {
    super::keep_sessions();
    let mut player = Player::new(input);
    player.step(&Step::Start(0));
    input.steps.iter().take(48).for_each(|step| player.step(step));
    player.step(&Step::Flow(255));
    player.step(&Step::Eos);
}
