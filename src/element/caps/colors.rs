// SPDX-License-Identifier: MPL-2.0

//! What caps say about colours, and what they leave open.
//!
//! GStreamer's own parser takes its defaults for all of the colorimetry where only the matrix is
//! unknown, and for the chroma site where the colorimetry is missing. Here, what is said holds.

use gst::glib;

const COLORIMETRY: &str = "colorimetry";
const CHROMA_SITE: &str = "chroma-site";

/// The format that fixed `caps` describe.
///
/// # Errors
///
/// Caps that describe no format.
pub(in crate::element) fn video_info(
    caps: &gst::CapsRef,
) -> Result<gst_video::VideoInfo, glib::BoolError> {
    if !caps.is_fixed() {
        return Err(glib::bool_error!("{caps} are not fixed"));
    }
    let mut caps = caps.to_owned();
    if let Some(colors) = CapsColors::of(&caps) {
        for structure in caps.make_mut().iter_mut() {
            structure.remove_fields([COLORIMETRY, CHROMA_SITE]);
            colors.say(structure);
        }
    }
    gst_video::VideoInfo::from_caps(&caps)
}

/// Fixed `caps` that also say what they leave open, as the defaults of another size would differ.
pub(super) fn spelled_out(mut caps: gst::Caps) -> gst::Caps {
    if let Some(colors) = CapsColors::of(&caps) {
        caps.make_mut().iter_mut().for_each(|structure| colors.say(structure));
    }
    caps
}

/// `caps` less what fixed caps do not say in full of colours, so that the completed colours can take
/// its place on the other pad.
pub(super) fn said_in_full(caps: &gst::CapsRef) -> gst::Caps {
    let mut full = caps.to_owned();
    let is_said = |field| caps.iter().any(|structure| structure.has_field(field));
    if ![COLORIMETRY, CHROMA_SITE].into_iter().any(is_said) {
        return full;
    }
    let Some(colors) = CapsColors::of(caps) else { return full };
    for structure in full.make_mut().iter_mut() {
        let said = |field| structure.get::<String>(field).ok();
        let colorimetry = said(COLORIMETRY).and_then(|c| c.parse().ok());
        let site = said(CHROMA_SITE).and_then(|site| site.parse().ok());
        if colorimetry != Some(colors.colorimetry) {
            structure.remove_field(COLORIMETRY);
        }
        if colors.site.is_some() && site != colors.site {
            structure.remove_field(CHROMA_SITE);
        }
    }
    full
}

/// Whether samples of chroma are fewer than those of luma, so that their site matters.
pub(super) fn is_subsampled(format: &gst_video::VideoFormatInfo) -> bool {
    format.is_yuv() && format.w_sub().iter().chain(format.h_sub()).any(|sub| *sub > 0)
}

/// The colours that caps of a raw format state.
#[derive(Debug)]
struct CapsColors {
    colorimetry: gst_video::VideoColorimetry,
    /// `None` where it does not matter.
    site: Option<gst_video::VideoChromaSite>,
}

impl CapsColors {
    /// Those of fixed `caps`; `None` for others, and for caps of no raw format.
    fn of(caps: &gst::CapsRef) -> Option<Self> {
        let structure = caps.structure(0).filter(|_| caps.is_fixed())?;
        let said = |field| structure.get::<String>(field).ok();
        let mut bare = caps.to_owned();
        bare.make_mut()
            .iter_mut()
            .for_each(|structure| structure.remove_fields([COLORIMETRY, CHROMA_SITE]));
        let defaults = gst_video::VideoInfo::from_caps(&bare).ok()?;
        if defaults.format() == gst_video::VideoFormat::Encoded {
            return None;
        }
        let colorimetry = completed(said(COLORIMETRY).as_deref(), &defaults);
        let site = is_subsampled(&defaults.format_info()).then(|| {
            let said = said(CHROMA_SITE).and_then(|site| site.parse().ok());
            said.unwrap_or_else(|| usual_site(&colorimetry))
        });
        Some(Self { colorimetry, site })
    }

    /// Writes them into `structure`, where it does not have them.
    fn say(&self, structure: &mut gst::StructureRef) {
        if !structure.has_field(COLORIMETRY) {
            structure.set(COLORIMETRY, self.colorimetry.to_string());
        }
        if let Some(site) = self.site.filter(|_| !structure.has_field(CHROMA_SITE)) {
            structure.set(CHROMA_SITE, site.to_str());
        }
    }
}

/// The colorimetry that is `said`, with its unknown matrix and range from the `defaults`.
fn completed(said: Option<&str>, defaults: &gst_video::VideoInfo) -> gst_video::VideoColorimetry {
    use gst_video::VideoColorRange::{Range0_255, Range16_235};

    let default = defaults.colorimetry();
    let Some(Ok(said)) = said.map(str::parse::<gst_video::VideoColorimetry>) else {
        return default;
    };
    let range = match said.range() {
        range @ (Range0_255 | Range16_235) => range,
        _ => default.range(),
    };
    // Neither RGB nor an unknown matrix has weights.
    let matrix = match said.matrix() {
        matrix if !defaults.is_rgb() && matrix.kr_kb().is_ok() => matrix,
        _ => default.matrix(),
    };
    gst_video::VideoColorimetry::new(range, matrix, said.transfer(), said.primaries())
}

/// The chroma site of a stream that does not say it: that of MPEG-2 and its successors, or with the
/// full range that of JPEG. Players assume the same.
fn usual_site(colorimetry: &gst_video::VideoColorimetry) -> gst_video::VideoChromaSite {
    if colorimetry.range() == gst_video::VideoColorRange::Range0_255 {
        gst_video::VideoChromaSite::JPEG
    } else {
        gst_video::VideoChromaSite::MPEG2
    }
}
