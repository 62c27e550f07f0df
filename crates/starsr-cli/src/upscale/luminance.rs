// SPDX-License-Identifier: MPL-2.0

//! The luminance of HDR10's mastering display in Matroska: GStreamer's muxer, up to 1.26 at least,
//! takes its unit for a fifth of what it is.

use std::sync::LazyLock;

use gst::prelude::*;

use crate::media::elements::{make, rewrite_caps, text};

/// A mastering display of 1000 cd/m², in GStreamer's form; its luminances come last, in 1/10000 cd/m².
const DISPLAY: &str = "35400:14600:8500:39850:6550:2300:15635:16450:10000000:1";
const BRIGHTEST: f64 = 1000.0;
/// Matroska's element LuminanceMax, with its length of eight bytes.
const LUMINANCE_MAX: [u8; 3] = [0x55, 0xd9, 0x88];

/// How many times too small the muxer's luminances are, as it does with a frame of its own.
static FACTOR: LazyLock<f64> = LazyLock::new(|| {
    measured()
        .ok()
        .flatten()
        .filter(|luminance| *luminance > 0.0)
        .map_or(1.0, |luminance| BRIGHTEST / luminance)
});

/// Lets `inlet` of `muxer` write the luminances that the caps mean, if the muxer is Matroska's.
pub fn correct(muxer: &gst::Element, inlet: &gst::Pad) {
    if muxer.factory().is_some_and(|factory| factory.name() == "matroskamux") {
        rewrite_caps(inlet, |caps| scaled(caps, *FACTOR));
    }
}

/// `caps` with `factor` times their luminances, where they have any.
fn scaled(caps: &gst::CapsRef, factor: f64) -> Option<gst::Caps> {
    let display = caps.structure(0)?.get::<&str>("mastering-display-info").ok()?;
    let mut values: Vec<u32> =
        display.split(':').map(|value| value.parse().ok()).collect::<Option<_>>()?;
    if values.len() != DISPLAY.split(':').count() {
        return None;
    }
    let first = values.len() - 2;
    for value in &mut values[first..] {
        *value = (f64::from(*value) * factor).round() as u32;
    }
    let display: Vec<_> = values.iter().map(ToString::to_string).collect();
    let mut caps = caps.to_owned();
    caps.make_mut().structure_mut(0)?.set("mastering-display-info", display.join(":"));
    Some(caps)
}

/// What the muxer writes for [`BRIGHTEST`].
fn measured() -> Result<Option<f64>, String> {
    let pipeline = gst::Pipeline::new();
    let (source, muxer) = (make("appsrc")?, make("matroskamux")?);
    let source = source.downcast::<gst_app::AppSrc>().map_err(|_| "appsrc is another element")?;
    let sink = gst_app::AppSink::builder().sync(false).build();
    source.set_format(gst::Format::Time);
    source.set_caps(Some(
        &gst::Caps::builder("video/x-vp9")
            .field("width", 16)
            .field("height", 16)
            .field("framerate", gst::Fraction::new(25, 1))
            .field("colorimetry", "bt2100-pq")
            .field("mastering-display-info", DISPLAY)
            .build(),
    ));
    let elements = [source.upcast_ref(), &muxer, sink.upcast_ref::<gst::Element>()];
    pipeline.add_many(elements).map_err(text)?;
    gst::Element::link_many(elements).map_err(text)?;
    pipeline.set_state(gst::State::Playing).map_err(text)?;
    let mut frame = gst::Buffer::with_size(16).map_err(text)?;
    frame.make_mut().set_pts(gst::ClockTime::ZERO);
    // An end that comes early shows in what comes out.
    let _ = source.push_buffer(frame).and_then(|_| source.end_of_stream());
    let mut written = Vec::new();
    while let Ok(sample) = sink.pull_sample() {
        if let Some(bytes) = sample.buffer().and_then(|buffer| buffer.map_readable().ok()) {
            written.extend_from_slice(&bytes);
        }
    }
    pipeline.set_state(gst::State::Null).map_err(text)?;
    let place = written.windows(3).position(|bytes| bytes == LUMINANCE_MAX);
    let value = place.and_then(|place| written.get(place + 3..place + 11)?.try_into().ok());
    Ok(value.map(f64::from_be_bytes))
}
