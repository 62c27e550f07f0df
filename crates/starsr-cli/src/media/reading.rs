// SPDX-License-Identifier: MPL-2.0

//! From the source of an input to its compressed streams, read ahead and held back until they are
//! connected.

use std::sync::Arc;

use gst::prelude::*;
use parking_lot::Mutex;

use super::counts::Counts;
use super::elements::{always_pad, make, nowhere, text};
use super::held::{Held, Prelude};
use super::mending::{ContainerColors, mend_demuxers};

/// The most bytes of one compressed stream that are read ahead.
const READ_AHEAD_BYTES: u32 = 128 << 20;
/// Buffers of one stream read ahead while no other stream starves.
const READ_AHEAD_BUFFERS: u32 = 32;

/// What reads an input, in a pipeline.
pub struct Reading {
    source: gst::Element,
    parser: gst::Element,
    prelude: Arc<Mutex<Prelude>>,
    /// `None` once they are taken.
    streams: Arc<Mutex<Option<Vec<Held>>>>,
    /// What the container says about the video's colours.
    pub colors: ContainerColors,
}

impl Reading {
    /// Puts what is behind `source` into `pipeline`. The message
    /// [`STREAMS_KNOWN`](super::held::STREAMS_KNOWN) says when [`Self::take_streams`] may be called.
    /// A stream that begins later is swallowed; `late` is called for it with the parser.
    pub fn new(
        pipeline: &gst::Pipeline,
        source: gst::Element,
        counts: &Arc<Counts>,
        late: impl Fn(&gst::Element) + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let parser = make("parsebin")?;
        // A multiqueue lets a stream grow while another one starves. So neither the frames that
        // starsr and the encoder hold back nor badly interleaved files can block it; bytes are its
        // only hard limit.
        let queue = make("multiqueue")?;
        queue.set_property("max-size-bytes", READ_AHEAD_BYTES);
        queue.set_property("max-size-time", 0u64);
        queue.set_property("max-size-buffers", READ_AHEAD_BUFFERS);
        pipeline.add_many([&source, &parser, &queue]).map_err(text)?;
        source.link(&parser).map_err(text)?;
        counts.watch_pad(&always_pad(&source, "src")?);

        let colors = mend_demuxers(&parser);
        let streams = Arc::new(Mutex::new(Some(Vec::new())));
        let prelude: Arc<Mutex<Prelude>> = Arc::default();
        Prelude::watch(&prelude, &parser);
        parser.connect_pad_added({
            let (streams, prelude) = (streams.clone(), prelude.clone());
            move |parser, pad| {
                let held = match &mut *streams.lock() {
                    Some(streams) => {
                        Held::new(pad, &queue, &prelude).map(|stream| streams.push(stream))
                    }
                    // The end of the streams so far completes the output.
                    None => swallow(parser, pad).map(|()| late(parser)),
                };
                if let Err(reason) = held {
                    gst::element_error!(parser, gst::StreamError::Format, ("{reason}"));
                }
            }
        });
        Ok(Self { source, parser, prelude, streams, colors })
    }

    /// The streams so far.
    pub fn take_streams(&self) -> Vec<Held> {
        self.streams.lock().take().unwrap_or_default()
    }

    /// Does not wait for ever to know the streams.
    pub fn settle(&self, pipeline: &gst::Pipeline) {
        Prelude::settle(&self.prelude, pipeline);
    }

    /// Whether some thread is reading the input. parsebin drops a demuxer's error that comes while
    /// the demuxer is still starting; then this is the only sign of it.
    pub fn is_reading(&self) -> bool {
        let Some(parser) = self.parser.downcast_ref::<gst::Bin>() else { return true };
        let elements = parser.iterate_recurse().into_iter().flatten().chain([self.source.clone()]);
        elements
            .flat_map(|element| element.pads())
            .any(|pad| pad.task_state() == gst::TaskState::Started)
    }
}

/// Swallows a stream.
fn swallow(parser: &gst::Element, pad: &gst::Pad) -> Result<(), String> {
    let bin = parser.parent().and_downcast::<gst::Bin>().ok_or("the pipeline is gone")?;
    pad.link(&nowhere(&bin)?).map(|_| ()).map_err(text)
}
