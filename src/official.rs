// SPDX-License-Identifier: MPL-2.0

//! The element `starsrofficialsize`: frames at the size that STAR on CogVideoX takes, by the rules
//! of the authors' program.

/**
 * SECTION:element-starsrofficialsize
 *
 * Brings frames to 720x480 exactly as the authors' program does for STAR on CogVideoX: wider
 * frames are shrunk to two thirds, narrower ones enlarged four times, both in 8 bits and one
 * direction after the other, and the middle is cut out. What is missing is black. It serves
 * comparisons with that program; `starsr` itself takes frames of any size and cuts nothing off.
 *
 * |[
 * gst-launch-1.0 filesrc location=in.mp4 ! decodebin ! videoconvert ! starsrofficialsize \
 *   ! starsr model-path=star-cogvideox scale=1 ! x264enc ! mp4mux ! filesink location=out.mp4
 * ]|
 *
 * Since: 0.2
 */
use std::sync::LazyLock;

use gst::glib;
use gst::prelude::*;
use gst_base::subclass::prelude::*;
use gst_video::prelude::*;
use gst_video::subclass::prelude::*;
use ndarray::{ArrayView3, ArrayViewMut3, ShapeBuilder};

use starsr::Size;
use starsr::geometry::bytes::{Rescale, centred};

/// The size that the networks were trained for.
const SIZE: Size = Size { width: 720, height: 480 };

static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new(
        "starsrofficialsize",
        gst::DebugColorFlags::empty(),
        Some("Frames at the size that STAR on CogVideoX takes"),
    )
});

#[derive(Default)]
pub struct OfficialSize;

glib::wrapper! {
    pub struct OfficialSizeElement(ObjectSubclass<OfficialSize>)
        @extends gst_video::VideoFilter, gst_base::BaseTransform, gst::Element, gst::Object;
}

#[glib::object_subclass]
impl ObjectSubclass for OfficialSize {
    const NAME: &'static str = "GstStarsrOfficialSize";
    type Type = OfficialSizeElement;
    type ParentType = gst_video::VideoFilter;
}

impl ObjectImpl for OfficialSize {}
impl GstObjectImpl for OfficialSize {}

impl ElementImpl for OfficialSize {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            gst::subclass::ElementMetadata::new(
                "STAR's official frame size",
                "Filter/Converter/Video/Scaler",
                "Brings frames to 720x480 as the program of STAR on CogVideoX does",
                "The starsr developers",
            )
        });
        Some(&*METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
            let caps = |direction| {
                let rgb = gst_video::VideoCapsBuilder::new().format(gst_video::VideoFormat::Rgb);
                sized(rgb.build(), direction)
            };
            let template = |(name, direction)| {
                let presence = gst::PadPresence::Always;
                gst::PadTemplate::new(name, direction, presence, &caps(direction)).ok()
            };
            let pads = [("sink", gst::PadDirection::Sink), ("src", gst::PadDirection::Src)];
            pads.into_iter().filter_map(template).collect()
        });
        TEMPLATES.as_ref()
    }
}

impl BaseTransformImpl for OfficialSize {
    const MODE: gst_base::subclass::BaseTransformMode =
        gst_base::subclass::BaseTransformMode::NeverInPlace;
    const PASSTHROUGH_ON_SAME_CAPS: bool = true;
    const TRANSFORM_IP_ON_PASSTHROUGH: bool = false;

    fn transform_caps(
        &self,
        direction: gst::PadDirection,
        caps: &gst::Caps,
        filter: Option<&gst::Caps>,
    ) -> Option<gst::Caps> {
        let from_sink = direction == gst::PadDirection::Sink;
        let other = if from_sink { gst::PadDirection::Src } else { gst::PadDirection::Sink };
        let other = sized(caps.clone(), other);
        Some(match filter {
            Some(filter) => filter.intersect_with_mode(&other, gst::CapsIntersectMode::First),
            None => other,
        })
    }
}

/// `caps` with the sizes that the pad of this direction takes or gives.
fn sized(mut caps: gst::Caps, direction: gst::PadDirection) -> gst::Caps {
    for structure in caps.make_mut().iter_mut() {
        for (side, length) in [("width", SIZE.width), ("height", SIZE.height)] {
            if direction == gst::PadDirection::Src {
                structure.set(side, length as i32);
            } else {
                structure.set(side, gst::IntRange::<i32>::new(1, i32::MAX));
            }
        }
    }
    caps
}

impl VideoFilterImpl for OfficialSize {
    fn transform_frame(
        &self,
        from: &gst_video::VideoFrameRef<&gst::BufferRef>,
        to: &mut gst_video::VideoFrameRef<&mut gst::BufferRef>,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        resize(from, to).map_err(|reason| {
            gst::element_imp_error!(self, gst::StreamError::Format, ("{reason}"));
            gst::FlowError::Error
        })?;
        gst::trace!(CAT, imp = self, "{}x{} became {SIZE}", from.width(), from.height());
        Ok(gst::FlowSuccess::Ok)
    }
}

fn resize(
    from: &gst_video::VideoFrameRef<&gst::BufferRef>,
    to: &mut gst_video::VideoFrameRef<&mut gst::BufferRef>,
) -> Result<(), String> {
    let (height, width) = (from.height() as usize, from.width() as usize);
    let source = from.plane_data(0).map_err(|e| e.to_string())?;
    let shape = planes(height, width, from.plane_stride()[0]);
    let source = ArrayView3::from_shape(shape, source).map_err(|e| e.to_string())?;
    let rescaled = Rescale::of(width, SIZE.width).apply(source).map_err(|e| e.to_string())?;
    let result = centred(rescaled.view(), SIZE).map_err(|e| e.to_string())?;
    let shape = planes(SIZE.height, SIZE.width, to.plane_stride()[0]);
    let target = to.plane_data_mut(0).map_err(|e| e.to_string())?;
    let target = ArrayViewMut3::from_shape(shape, target);
    target.map_err(|e| e.to_string())?.assign(&result);
    Ok(())
}

/// The channels of a packed picture as planes `[3,h,w]`.
fn planes(height: usize, width: usize, stride: i32) -> ndarray::StrideShape<ndarray::Ix3> {
    (3, height, width).strides((1, usize::try_from(stride).unwrap_or(0), 3))
}

/// Registers the element.
pub fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    let type_ = OfficialSizeElement::static_type();
    gst::Element::register(Some(plugin), "starsrofficialsize", gst::Rank::NONE, type_)
}
