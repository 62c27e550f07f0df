// SPDX-License-Identifier: MPL-2.0

//! An element between two pads of the test's own, which record in what order everything leaves it.

use std::sync::{Arc, Mutex, Once};

use gst::glib;
use gst::prelude::*;

use crate::fixtures;
use crate::patience::patiently;

/// Frame duration at 25 frames a second.
pub const FRAME: gst::ClockTime = gst::ClockTime::from_mseconds(40);
/// Caps of the frames that [`frame`] makes.
pub const CAPS: &str = "video/x-raw,format=I420,width=16,height=8,framerate=25/1,colorimetry=bt601";
const SIZE: (usize, usize) = (16, 8);

pub fn init() {
    static INIT: Once = Once::new();
    INIT.call_once(|| {
        gst::init().unwrap();
        glib::log_set_always_fatal(glib::LogLevels::LEVEL_CRITICAL | glib::LogLevels::LEVEL_ERROR);
        gststarsr::plugin_register_static().unwrap();
    });
}

/// starsr with the tiny bundle, windows of `length` frames that share `overlap` and do not end at
/// cuts, and the plain upscale as its result, so that each frame is known by its brightness. A
/// window's frames leave with its last frame, not later, so that a test can say when.
pub fn starsr(length: u32, overlap: i32) -> gst::Element {
    init();
    let element = gst::ElementFactory::make("starsr").build().unwrap();
    element.set_property("model-path", fixtures::tiny().to_str().unwrap());
    element.set_property("ort-library", fixtures::onnx_runtime().to_str().unwrap());
    element.set_property_from_str("execution-provider", "cpu");
    element.set_property("threads", 1u32);
    element.set_property("strength", 0.0f32);
    element.set_property("window-length", length);
    element.set_property("window-overlap", overlap);
    element.set_property("scene-detection", false);
    element.set_property("read-ahead", false);
    element
}

/// starsr with windows of four frames, of which one is shared, that never finishes with the graph
/// of
/// `role`, and its bundle.
pub fn endless_starsr(role: &str) -> (tempfile::TempDir, gst::Element) {
    let bundle = fixtures::tiny_endless(role);
    let element = starsr(4, 1);
    element.set_property("model-path", bundle.path().to_str().unwrap());
    element.set_property("strength", 1.0f32);
    (bundle, element)
}

/// The next message on `pipeline`'s bus of one of these `kinds`.
#[track_caller]
pub fn message(pipeline: &gst::Pipeline, kinds: &[gst::MessageType]) -> gst::Message {
    let bus = pipeline.bus().unwrap();
    patiently("the pipeline hangs", || bus.timed_pop_filtered(gst::ClockTime::SECOND, kinds))
}

/// Waits until `pipeline` is in the state that was asked for.
#[track_caller]
pub fn settle(pipeline: &gst::Pipeline) {
    patiently("the pipeline hangs", || {
        let change = pipeline.state(gst::ClockTime::SECOND).0.unwrap();
        (change != gst::StateChangeSuccess::Async).then_some(())
    });
}

/// The brightness of frame `k`.
pub fn level(k: u64) -> u8 {
    30 + (k * 7 % 180) as u8
}

fn stamped(mut buffer: gst::Buffer, k: u64) -> gst::Buffer {
    let b = buffer.make_mut();
    b.set_pts(FRAME * k);
    b.set_dts(FRAME * k);
    b.set_duration(FRAME);
    b.set_offset(k);
    b.set_offset_end(k + 1);
    buffer
}

/// Frame `k` of an even grey, for [`CAPS`].
pub fn frame(k: u64) -> gst::Buffer {
    let (luma, chroma) = (SIZE.0 * SIZE.1, SIZE.0 * SIZE.1 / 2);
    stamped(gst::Buffer::from_mut_slice([vec![level(k); luma], vec![128; chroma]].concat()), k)
}

/// Frame `k` with structure, for [`CAPS`].
pub fn textured_frame(k: u64) -> gst::Buffer {
    let bytes = SIZE.0 * SIZE.1 * 3 / 2;
    stamped(
        gst::Buffer::from_mut_slice(
            (0..bytes).map(|i| (40 + (i * 37 + k as usize * 11) % 150) as u8).collect::<Vec<_>>(),
        ),
        k,
    )
}

pub fn bytes(buffer: &gst::BufferRef) -> Vec<u8> {
    buffer.map_readable().unwrap().to_vec()
}

/// What left the element.
#[derive(Debug, Clone)]
pub enum Item {
    Buffer(gst::Buffer),
    Event(gst::Event),
}

impl Item {
    /// A buffer's offset or an event's type, or name if it has one.
    pub fn label(&self) -> String {
        match self {
            Item::Buffer(buffer) => buffer.offset().to_string(),
            Item::Event(event) => match event.structure() {
                Some(s) if event.type_() == gst::EventType::CustomDownstream => {
                    s.name().to_string()
                }
                _ => event.type_().name().to_string(),
            },
        }
    }
}

#[derive(Clone)]
struct Downstream {
    items: Arc<Mutex<Vec<Item>>>,
    flow: Arc<Mutex<Result<gst::FlowSuccess, gst::FlowError>>>,
}

pub struct Rig {
    pub element: gst::Element,
    pub src: gst::Pad,
    pub sink: gst::Pad,
    pub bus: gst::Bus,
    /// What upstream answers to a latency query if it is live.
    upstream: Arc<Mutex<Option<gst::ClockTime>>>,
    downstream: Downstream,
}

impl Rig {
    /// Plays `element`; downstream takes `accepted`.
    pub fn new(element: gst::Element, accepted: Option<&str>) -> Self {
        init();
        let downstream = Downstream {
            items: Arc::default(),
            flow: Arc::new(Mutex::new(Ok(gst::FlowSuccess::Ok))),
        };
        let upstream = Arc::new(Mutex::new(None));
        let latency = upstream.clone();
        let src = gst::Pad::builder(gst::PadDirection::Src)
            .name("feed")
            .query_function(move |pad, parent, query| {
                match (query.view_mut(), *latency.lock().unwrap()) {
                    (gst::QueryViewMut::Latency(query), Some(latency)) => {
                        query.set(true, latency, gst::ClockTime::NONE);
                        true
                    }
                    _ => gst::Pad::query_default(pad, parent, query),
                }
            })
            .build();
        let (on_buffer, on_event) = (downstream.clone(), downstream.clone());
        // Left to itself a pad without template accepts the caps it has.
        let accepted: gst::Caps = accepted.unwrap_or("video/x-raw").parse().unwrap();
        let sink = gst::Pad::builder(gst::PadDirection::Sink)
            .name("take")
            .chain_function(move |_, _, buffer| {
                let flow = *on_buffer.flow.lock().unwrap();
                if flow.is_ok() {
                    on_buffer.items.lock().unwrap().push(Item::Buffer(buffer));
                }
                flow
            })
            .event_function(move |_, _, event| {
                on_event.items.lock().unwrap().push(Item::Event(event));
                true
            })
            .query_function(move |pad, parent, query| match query.view_mut() {
                gst::QueryViewMut::Caps(query) => {
                    let result = match query.filter() {
                        Some(filter) => {
                            filter.intersect_with_mode(&accepted, gst::CapsIntersectMode::First)
                        }
                        None => accepted.clone(),
                    };
                    query.set_result(&result);
                    true
                }
                _ => gst::Pad::query_default(pad, parent, query),
            })
            .build();
        src.link(&element.static_pad("sink").unwrap()).unwrap();
        element.static_pad("src").unwrap().link(&sink).unwrap();
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        src.set_active(true).unwrap();
        sink.set_active(true).unwrap();
        let rig = Self { element, src, sink, bus, upstream, downstream };
        rig.play();
        rig
    }

    pub fn play(&self) {
        assert!(
            self.element.set_state(gst::State::Playing).is_ok(),
            "starsr does not start: {:?}",
            self.errors()
        );
    }

    /// A rig with [`starsr()`] that has got [`CAPS`] and a segment.
    pub fn started(length: u32, overlap: i32) -> Self {
        let rig = Self::new(starsr(length, overlap), None);
        rig.start(CAPS);
        rig
    }

    /// Pushes what comes before the first frame.
    pub fn start(&self, caps: &str) {
        self.event(gst::event::StreamStart::new("test"));
        self.caps(caps);
        self.segment(gst::ClockTime::ZERO);
    }

    pub fn caps(&self, caps: &str) -> bool {
        self.event(gst::event::Caps::new(&caps.parse().unwrap()))
    }

    /// A segment of which the first frame is at `start`, in the stream too.
    pub fn segment(&self, start: gst::ClockTime) -> bool {
        let mut segment = gst::FormattedSegment::<gst::ClockTime>::new();
        segment.set_start(start);
        segment.set_time(start);
        self.event(gst::event::Segment::new(&segment))
    }

    pub fn event(&self, event: gst::Event) -> bool {
        self.src.push_event(event)
    }

    pub fn eos(&self) -> bool {
        self.event(gst::event::Eos::new())
    }

    pub fn push(&self, buffer: gst::Buffer) -> Result<gst::FlowSuccess, gst::FlowError> {
        self.src.push(buffer)
    }

    #[track_caller]
    pub fn push_all(&self, frames: impl IntoIterator<Item = u64>) {
        self.push_each(frames, frame);
    }

    /// The same with frames that have edges and noise.
    #[track_caller]
    pub fn push_textured(&self, frames: impl IntoIterator<Item = u64>) {
        self.push_each(frames, textured_frame);
    }

    #[track_caller]
    fn push_each(&self, frames: impl IntoIterator<Item = u64>, frame: fn(u64) -> gst::Buffer) {
        for k in frames {
            self.push(frame(k)).unwrap_or_else(|e| panic!("frame {k}: {e:?}, {:?}", self.errors()));
        }
    }

    /// Makes upstream live; `None` makes it not live.
    pub fn set_upstream_latency(&self, latency: Option<gst::ClockTime>) {
        *self.upstream.lock().unwrap() = latency;
    }

    /// The messages of a kind on the bus so far; others are lost.
    pub fn messages(&self, kind: gst::MessageType) -> Vec<gst::Message> {
        std::iter::from_fn(|| self.bus.pop_filtered(&[kind])).collect()
    }

    /// What downstream answers from now on.
    pub fn set_flow(&self, flow: Result<gst::FlowSuccess, gst::FlowError>) {
        *self.downstream.flow.lock().unwrap() = flow;
    }

    pub fn items(&self) -> Vec<Item> {
        self.downstream.items.lock().unwrap().clone()
    }

    pub fn forget(&self) {
        self.downstream.items.lock().unwrap().clear();
    }

    pub fn labels(&self) -> Vec<String> {
        self.items().iter().map(Item::label).collect()
    }

    pub fn buffers(&self) -> Vec<gst::Buffer> {
        self.items()
            .into_iter()
            .filter_map(|item| match item {
                Item::Buffer(buffer) => Some(buffer),
                Item::Event(_) => None,
            })
            .collect()
    }

    pub fn offsets(&self) -> Vec<u64> {
        self.buffers().iter().map(|b| b.offset()).collect()
    }

    /// The bytes of what has left, which are the frames `frames` with their times.
    #[track_caller]
    pub fn taken(&self, frames: impl IntoIterator<Item = u64>) -> Vec<Vec<u8>> {
        assert_eq!(self.errors(), Vec::<String>::new());
        assert_eq!(self.offsets(), Vec::from_iter(frames));
        for buffer in self.buffers() {
            let time = FRAME * buffer.offset();
            assert_eq!((buffer.pts(), buffer.duration()), (Some(time), Some(FRAME)));
        }
        self.buffers().iter().map(|buffer| bytes(buffer)).collect()
    }

    /// The caps that were in force when each buffer left.
    pub fn caps_of_buffers(&self) -> Vec<gst::Caps> {
        let mut caps = gst::Caps::new_empty();
        let mut of_buffers = Vec::new();
        for item in self.items() {
            match item {
                Item::Event(event) => {
                    if let gst::EventView::Caps(event) = event.view() {
                        caps = event.caps_owned();
                    }
                }
                Item::Buffer(_) => of_buffers.push(caps.clone()),
            }
        }
        of_buffers
    }

    /// The errors on the bus so far.
    pub fn errors(&self) -> Vec<String> {
        let mut errors = Vec::new();
        while let Some(message) = self.bus.pop_filtered(&[gst::MessageType::Error]) {
            if let gst::MessageView::Error(error) = message.view() {
                errors.push(error.error().message().to_string());
            }
        }
        errors
    }

    pub fn stat(&self, field: &str) -> u64 {
        self.element.property::<gst::Structure>("stats").get(field).unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.element.set_state(gst::State::Null);
        let _ = self.src.set_active(false);
        let _ = self.sink.set_active(false);
        self.element.set_bus(None);
    }
}
