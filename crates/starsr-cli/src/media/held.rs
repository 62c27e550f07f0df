// SPDX-License-Identifier: MPL-2.0

//! The streams of an input before they are connected.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gst::prelude::*;
use parking_lot::Mutex;

use super::elements::always_pad;
use super::streams::{Kind, is_picture};

/// Name of the message posted once all streams of the input are known.
pub const STREAMS_KNOWN: &str = "streams-known";

/// How long to wait, once there is data, for a demuxer that never says that it has no more streams.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is seen of the streams before they are connected.
#[derive(Default)]
pub struct Prelude {
    /// Whether the parser has said which streams there are, and a video is none of them.
    lacks_video: bool,
    /// Whether there is a video stream, and whether the first one's data has come.
    video: Option<bool>,
    /// When the data of any stream came.
    data: Option<Instant>,
    /// The demuxers that may have more streams.
    demuxers: HashSet<gst::Element>,
    /// Whether [`STREAMS_KNOWN`] was posted.
    known: bool,
}

impl Prelude {
    /// Notes which demuxers `parser` plugs, and when they have no more streams.
    pub fn watch(this: &Arc<Mutex<Self>>, parser: &gst::Element) {
        let Some(parser) = parser.downcast_ref::<gst::Bin>() else { return };
        let prelude = this.clone();
        parser.connect_deep_element_added(move |_, _, element| {
            let is_demuxer = element
                .factory()
                .is_some_and(|factory| factory.has_type(gst::ElementFactoryType::DEMUXER));
            if is_demuxer {
                prelude.lock().demuxers.insert(element.clone());
                let prelude = prelude.clone();
                element.connect_no_more_pads(move |element| {
                    Self::note(&prelude, element, |prelude| {
                        prelude.demuxers.remove(element);
                    });
                });
            }
        });
        let prelude = this.clone();
        parser.connect_deep_element_removed(move |_, _, element| {
            prelude.lock().demuxers.remove(element);
        });
    }

    /// Gives up waiting for demuxers that are silent for too long.
    pub fn settle(this: &Mutex<Self>, pipeline: &gst::Pipeline) {
        let waits = this.lock().data.is_some_and(|since| since.elapsed() > PATIENCE);
        if waits {
            Self::note(this, pipeline.upcast_ref(), |prelude| prelude.demuxers.clear());
        }
    }

    /// Notes what `change` does. Posts [`STREAMS_KNOWN`], once, when everything is known: all tags
    /// of the video come before its data.
    fn note(this: &Mutex<Self>, element: &gst::Element, change: impl FnOnce(&mut Self)) {
        let mut prelude = this.lock();
        change(&mut prelude);
        let has_data = match prelude.video {
            Some(data) => data,
            None => prelude.lacks_video && prelude.data.is_some(),
        };
        let is_known = has_data && prelude.demuxers.is_empty();
        if is_known && !std::mem::replace(&mut prelude.known, true) {
            drop(prelude);
            let known = gst::Structure::new_empty(STREAMS_KNOWN);
            // It fails where the pipeline is being stopped, and then nobody waits for it.
            let _ = element
                .post_message(gst::message::Application::builder(known).src(element).build());
        }
    }
}

/// A stream at the end of the read-ahead queue, held back until it is linked.
pub struct Held {
    /// Where it enters the queue, and where it leaves.
    pub inlet: gst::Pad,
    pub pad: gst::Pad,
    /// What the parser announced.
    announced: gst::Caps,
    block: gst::PadProbeId,
}

impl Held {
    /// Leads `pad` of the parser into `queue` and holds it back at the other end. What is said about
    /// the stream in front of its data gets through.
    pub fn new(
        pad: &gst::Pad,
        queue: &gst::Element,
        prelude: &Arc<Mutex<Prelude>>,
    ) -> Result<Self, String> {
        let inlet = queue.request_pad_simple("sink_%u").ok_or("multiqueue refuses another pad")?;
        let outlet = always_pad(queue, &inlet.name().replace("sink", "src"))?;
        let announced = pad
            .current_caps()
            .or_else(|| pad.stream().and_then(|stream| stream.caps()))
            .unwrap_or_else(|| pad.query_caps(None));
        let mut is_video = Kind::of(&announced) == Kind::Video;
        Prelude::note(prelude, queue, |prelude| {
            is_video &= prelude.video.is_none();
            if is_video {
                prelude.video = Some(false);
            }
        });
        let (prelude, queue) = (prelude.clone(), queue.downgrade());
        let block = outlet
            .add_probe(gst::PadProbeType::BLOCK_DOWNSTREAM, move |outlet, info| {
                let Some(queue) = queue.upgrade() else { return gst::PadProbeReturn::Ok };
                match info.event().map(|event| event.view()) {
                    None | Some(gst::EventView::Eos(_) | gst::EventView::Gap(_)) => {}
                    Some(gst::EventView::StreamCollection(event)) => {
                        let lacks_video = !has_video(&event.stream_collection());
                        Prelude::note(&prelude, &queue, |prelude| {
                            prelude.lacks_video = lacks_video;
                        });
                        return gst::PadProbeReturn::Pass;
                    }
                    Some(_) => return gst::PadProbeReturn::Pass,
                }
                // Some parsers announce a stream before its caps are known.
                let turns_out =
                    outlet.current_caps().is_some_and(|caps| Kind::of(&caps) == Kind::Video);
                Prelude::note(&prelude, &queue, |prelude| {
                    prelude.data.get_or_insert_with(Instant::now);
                    if is_video || turns_out && prelude.video.is_none() {
                        prelude.video = Some(true);
                    }
                });
                gst::PadProbeReturn::Ok
            })
            .ok_or("a pad cannot be held back")?;
        pad.link(&inlet).map_err(|error| error.to_string())?;
        Ok(Self { inlet, pad: outlet, announced, block })
    }

    /// What the stream is, in the words nearest to its data.
    pub fn caps(&self) -> gst::Caps {
        self.pad.current_caps().unwrap_or_else(|| self.announced.clone())
    }

    /// Lets the stream run.
    pub fn release(self) {
        self.pad.remove_probe(self.block);
    }

    /// How a player has to rotate the video, in the words of GStreamer's tag; `None` where it has not.
    pub fn orientation(&self) -> Option<String> {
        let orientation = self.tag(|tags| {
            tags.get::<gst::tags::ImageOrientation>().map(|value| value.get().to_owned())
        });
        orientation.filter(|orientation| orientation != "rotate-0")
    }

    /// The language of the stream, empty where it is not known.
    pub fn language(&self) -> String {
        let language = self
            .tag(|tags| tags.get::<gst::tags::LanguageCode>().map(|value| value.get().to_owned()));
        language.unwrap_or_default()
    }

    /// The last tag that `find` finds.
    fn tag(&self, find: impl Fn(&gst::TagListRef) -> Option<String>) -> Option<String> {
        let mut found = None;
        self.pad.sticky_events_foreach(|event| {
            if let gst::EventView::Tag(tag) = event.view() {
                found = find(tag.tag()).or(found.take());
            }
            std::ops::ControlFlow::Continue(gst::EventForeachAction::Keep)
        });
        found
    }
}

/// The places of the videos among `streams`, and the one that is taken by default: the first that is
/// no picture.
pub fn videos(streams: &[Held]) -> (Vec<usize>, Option<usize>) {
    let of = |place: &usize| streams[*place].caps();
    let videos: Vec<_> =
        (0..streams.len()).filter(|place| Kind::of(&of(place)) == Kind::Video).collect();
    let moving = videos.iter().find(|place| !is_picture(&of(place)));
    let first = moving.or(videos.first()).copied();
    (videos, first)
}

/// Whether a parser's list of streams names a video.
fn has_video(collection: &gst::StreamCollection) -> bool {
    collection.iter().any(|stream| {
        stream.stream_type().contains(gst::StreamType::VIDEO)
            || stream.caps().is_some_and(|caps| Kind::of(&caps) == Kind::Video)
    })
}
