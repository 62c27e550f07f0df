// SPDX-License-Identifier: MPL-2.0

//! The caps of one pad from those of the other. Sizes are multiplied or divided by the scale;
//! everything else is kept.

use gst::glib;
use gst::prelude::*;

mod colors;

pub(super) use colors::video_info;

/// Which way a size is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Map {
    /// Input to output: multiplied.
    Up,
    /// Output to input: divided.
    Down,
}

impl Map {
    /// The mapping for caps of the pad with this `direction`.
    pub(super) fn of(direction: gst::PadDirection) -> Self {
        if direction == gst::PadDirection::Src { Self::Down } else { Self::Up }
    }

    fn size(self, value: i64, scale: i64) -> Option<i32> {
        let mapped = match self {
            Self::Up => value.checked_mul(scale)?,
            Self::Down if value % scale == 0 => value / scale,
            Self::Down => return None,
        };
        i32::try_from(mapped).ok().filter(|v| *v > 0)
    }

    /// The nearest size, for a size that may not be a multiple.
    fn target(self, value: i32, scale: u32) -> i32 {
        let (value, scale) = (i64::from(value), i64::from(scale));
        let mapped = if self == Self::Up { value * scale } else { (value + scale / 2) / scale };
        mapped.clamp(1, i64::from(i32::MAX)) as i32
    }

    fn range(self, range: gst::IntRange<i32>, scale: i64) -> Option<glib::SendValue> {
        let (min, max, step) =
            (i64::from(range.min()), i64::from(range.max()), i64::from(range.step()));
        let (min, max, step) = match self {
            Self::Up => {
                let step = step * scale;
                (min.max(1) * scale, (max * scale).min(i64::from(i32::MAX) / step * step), step)
            }
            Self::Down => {
                // Exactly the sizes whose multiple lies on the range's grid.
                let step = step / gcd(step, scale);
                let least = (min.max(1) + scale - 1) / scale;
                ((least + step - 1) / step * step, max / scale / step * step, step)
            }
        };
        let step = i32::try_from(step).ok()?;
        let (min, max) = (i32::try_from(min).ok()?, i32::try_from(max).ok()?);
        match max.cmp(&min) {
            std::cmp::Ordering::Less => None,
            std::cmp::Ordering::Equal => Some(min.to_send_value()),
            // GStreamer wants bounds that are multiples of the step.
            std::cmp::Ordering::Greater if min % step == 0 && max % step == 0 => {
                Some(gst::IntRange::<i32>::with_step(min, max, step).to_send_value())
            }
            std::cmp::Ordering::Greater => {
                Some(gst::IntRange::<i32>::new(min, max).to_send_value())
            }
        }
    }

    fn value(self, value: &glib::Value, scale: i64) -> Option<glib::SendValue> {
        if let Ok(size) = value.get::<i32>() {
            self.size(i64::from(size), scale).map(|v| v.to_send_value())
        } else if let Ok(range) = value.get::<gst::IntRange<i32>>() {
            self.range(range, scale)
        } else if let Ok(list) = value.get::<gst::ListRef>() {
            let mut mapped: Vec<_> = list.iter().filter_map(|v| self.value(v, scale)).collect();
            match mapped.len() {
                0 => None,
                1 => mapped.pop(),
                _ => Some(gst::List::new(mapped).to_send_value()),
            }
        } else {
            None
        }
    }
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// `structure` with its sizes mapped; `None` when no size is left.
fn scaled(structure: &gst::StructureRef, map: Map, scale: u32) -> Option<gst::Structure> {
    let mut mapped = structure.to_owned();
    for field in ["width", "height"] {
        if let Ok(value) = structure.value(field) {
            mapped.set_value(field, map.value(value, i64::from(scale))?);
        }
    }
    Some(mapped)
}

fn any_size(structure: &gst::StructureRef) -> gst::Structure {
    let mut any = structure.to_owned();
    any.set("width", gst::IntRange::<i32>::new(1, i32::MAX));
    any.set("height", gst::IntRange::<i32>::new(1, i32::MAX));
    any.set(
        "pixel-aspect-ratio",
        gst::FractionRange::new(gst::Fraction::new(1, i32::MAX), gst::Fraction::new(i32::MAX, 1)),
    );
    any
}

fn any_format(mut structure: gst::Structure) -> gst::Structure {
    structure.remove_fields(["format", "colorimetry", "chroma-site"]);
    structure
}

/// The feature of caps whose buffers are single fields (interlace-mode=alternate).
fn of_fields() -> gst::CapsFeatures {
    gst::CapsFeatures::new([gst_video::CAPS_FEATURE_FORMAT_INTERLACED])
}

/// The caps of a pad template: every raw format in system memory. The sink pad also takes buffers
/// that are single fields. They are refused later, with an error that names a deinterlacer; a
/// mismatch of caps would not say why.
pub(super) fn template(direction: gst::PadDirection) -> gst::Caps {
    let formats =
        || gst_video::VideoCapsBuilder::new().format_list(gst_video::VideoFormat::iter_raw());
    let mut caps = formats().build();
    if direction == gst::PadDirection::Sink {
        caps.merge(formats().features([gst_video::CAPS_FEATURE_FORMAT_INTERLACED]).build());
    }
    caps
}

/// What the other pad may carry when this one carries `caps`. In order of preference: the exact
/// multiple in the same format, the exact multiple in any format, any size in the same format, any
/// size and format. Without a `scale`, as before the model is loaded, every size is possible.
pub(super) fn transform(caps: &gst::CapsRef, map: Map, scale: Option<u32>) -> gst::Caps {
    if caps.is_any() {
        return gst::Caps::new_any();
    }
    let caps = colors::said_in_full(caps);
    let mut out = gst::Caps::new_empty();
    let fields = of_fields();
    let mut add = |structure: Option<gst::Structure>, features: &gst::CapsFeaturesRef| {
        if let Some(mut structure) = structure {
            // Refused later, so it does not matter what they become.
            let features =
                if features.is_equal(&fields) { None } else { Some(features.to_owned()) };
            if features.is_none() {
                structure.remove_field("interlace-mode");
            }
            out.merge_structure_full(structure, features);
        }
    };
    let exact = |s: &gst::StructureRef| scale.and_then(|scale| scaled(s, map, scale));
    caps.iter_with_features().for_each(|(s, f)| add(exact(s), f));
    caps.iter_with_features().for_each(|(s, f)| add(exact(s).map(any_format), f));
    caps.iter_with_features().for_each(|(s, f)| add(Some(any_size(s)), f));
    caps.iter_with_features().for_each(|(s, f)| add(Some(any_format(any_size(s))), f));
    if map == Map::Down {
        for structure in caps.iter() {
            let mut structure = any_format(any_size(structure));
            structure.remove_field("interlace-mode");
            out.merge_structure_full(structure, Some(fields.clone()));
        }
    }
    out
}

/// A measure of what is lost when `from` is stored as `to`; 0 for the same format.
fn format_loss(from: gst_video::VideoFormat, to: gst_video::VideoFormat) -> u32 {
    if from == to {
        return 0;
    }
    let (a, b) = (
        gst_video::VideoFormatInfo::from_format(from),
        gst_video::VideoFormatInfo::from_format(to),
    );
    let depth = |i: &gst_video::VideoFormatInfo| i.depth().iter().copied().max().unwrap_or(0);
    // Log2 of the pixels that share a chroma sample.
    let subsampling = |i: &gst_video::VideoFormatInfo| {
        if i.is_yuv() && i.n_components() > 1 { i.w_sub()[1] + i.h_sub()[1] } else { 0 }
    };
    let mut loss = 1;
    if b.has_palette() && !a.has_palette() {
        loss += 20_000;
    }
    if b.is_gray() && !a.is_gray() {
        loss += 10_000;
    }
    loss += 1_000 * depth(&a).saturating_sub(depth(&b)) + depth(&b).saturating_sub(depth(&a));
    if !a.is_gray() {
        loss += 100 * subsampling(&b).saturating_sub(subsampling(&a));
        loss += 2 * subsampling(&a).saturating_sub(subsampling(&b));
    }
    loss += 10 * u32::from(a.is_rgb() != b.is_rgb() || a.is_gray() != b.is_gray());
    loss += u32::from(a.has_alpha() != b.has_alpha());
    loss += 3 * u32::from(b.is_tiled());
    loss
}

/// Fixes the format to the one that loses the least, and returns it with its loss.
fn fixate_format(
    s: &mut gst::Structure,
    from: gst_video::VideoFormat,
) -> Option<(gst_video::VideoFormat, u32)> {
    let names: Vec<String> = match s.value("format") {
        Err(_) => vec![from.to_str().to_string()],
        Ok(value) => {
            if let Ok(name) = value.get::<String>() {
                vec![name]
            } else {
                let list = value.get::<gst::ListRef>().ok()?;
                list.iter().filter_map(|v| v.get::<String>().ok()).collect()
            }
        }
    };
    let (format, loss) = names
        .iter()
        .map(|name| gst_video::VideoFormat::from_string(name))
        .filter(|format| *format != gst_video::VideoFormat::Unknown)
        .map(|format| (format, format_loss(from, format)))
        .min_by_key(|(_, loss)| *loss)?;
    s.set("format", format.to_str());
    Some((format, loss))
}

/// The colorimetry that keeps the colours of `info` in `format`; `None` leaves it to GStreamer's
/// default.
fn colorimetry_for(
    info: &gst_video::VideoInfo,
    format: &gst_video::VideoFormatInfo,
) -> Option<gst_video::VideoColorimetry> {
    let from = info.colorimetry();
    if format.is_rgb() == info.is_rgb() {
        return Some(from);
    }
    format.is_rgb().then(|| {
        gst_video::VideoColorimetry::new(
            gst_video::VideoColorRange::Range0_255,
            gst_video::VideoColorMatrix::Rgb,
            from.transfer(),
            from.primaries(),
        )
    })
}

fn offer_string(s: &mut gst::Structure, field: &str, value: &str) {
    if s.has_field(field) {
        s.fixate_field_str(field, value);
    } else {
        s.set(field, value);
    }
}

fn fixed_int(s: &gst::StructureRef, field: &str) -> Option<i32> {
    s.get::<i32>(field).ok()
}

/// The value in `field` nearest to `target`, rounded to a `multiple`.
fn nearest(s: &gst::StructureRef, field: &str, target: f64, multiple: i32) -> i32 {
    let multiple = f64::from(multiple);
    let target = ((target / multiple).round() * multiple).clamp(1.0, f64::from(i32::MAX)) as i32;
    let mut s = s.to_owned();
    if s.has_field(field) {
        s.fixate_field_nearest_int(field, target);
    }
    fixed_int(&s, field).unwrap_or(target)
}

fn reduced(num: i128, den: i128) -> gst::Fraction {
    let (mut a, mut b) = (num, den);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    match (i32::try_from(num / a), i32::try_from(den / a)) {
        (Ok(n), Ok(d)) => gst::Fraction::new(n, d),
        _ => gst::Fraction::approximate_f64(num as f64 / den as f64)
            .unwrap_or(gst::Fraction::new(1, 1)),
    }
}

/// Fixes size and pixel aspect ratio so that the picture keeps its display aspect ratio. `wanted`
/// is the exact multiple; width and height should be divisible by `multiple`. Returns whether the
/// size is the exact multiple.
fn fixate_size(
    s: &mut gst::Structure,
    (in_w, in_h): (i32, i32),
    in_par: gst::Fraction,
    wanted: (i32, i32),
    multiple: (i32, i32),
) -> bool {
    let ratio = |f: gst::Fraction| f64::from(f.numer()) / f64::from(f.denom());
    // The aspect ratio of output pixels: the input's where that is allowed.
    let par = if s.has_field("pixel-aspect-ratio") {
        let mut fixed = s.clone();
        fixed.fixate_field_nearest_fraction("pixel-aspect-ratio", in_par);
        fixed.get::<gst::Fraction>("pixel-aspect-ratio").unwrap_or(in_par)
    } else {
        in_par
    };
    // Width by height of the picture in output pixels.
    let aspect = f64::from(in_w) / f64::from(in_h) * ratio(in_par) / ratio(par);
    let (tw, th) = wanted;
    let (w, h) = match (fixed_int(s, "width"), fixed_int(s, "height")) {
        (Some(w), Some(h)) => (w, h),
        (Some(w), None) if w == tw && nearest(s, "height", th.into(), 1) == th && par == in_par => {
            (w, th)
        }
        (Some(w), None) => (w, nearest(s, "height", f64::from(w) / aspect, multiple.1)),
        (None, Some(h)) if h == th && nearest(s, "width", tw.into(), 1) == tw && par == in_par => {
            (tw, h)
        }
        (None, Some(h)) => (nearest(s, "width", f64::from(h) * aspect, multiple.0), h),
        (None, None) => {
            let (w, h) = (nearest(s, "width", tw.into(), 1), nearest(s, "height", th.into(), 1));
            if (w, h) == wanted && par == in_par {
                (w, h)
            } else {
                // The largest picture of the right aspect ratio that fits the allowed width and
                // height.
                let (w, h) = (
                    f64::from(w).min(f64::from(h) * aspect),
                    f64::from(h).min(f64::from(w) / aspect),
                );
                (nearest(s, "width", w, multiple.0), nearest(s, "height", h, multiple.1))
            }
        }
    };
    s.set("width", w);
    s.set("height", h);
    let (fw, fh) = (f64::from(w), f64::from(h));
    // Sizes are whole numbers, so an error of up to a pixel says nothing about the shape of pixels.
    let slack = |multiple: i32| if multiple > 1 { 1.0 + 1e-9 } else { 1.0 - 1e-9 };
    let fits = (fw - fh * aspect).abs() < slack(multiple.0)
        || (fh - fw / aspect).abs() < slack(multiple.1);
    if fits {
        s.set("pixel-aspect-ratio", par);
    } else {
        let exact = reduced(
            i128::from(in_w) * i128::from(in_par.numer()) * i128::from(h),
            i128::from(in_h) * i128::from(in_par.denom()) * i128::from(w),
        );
        if s.has_field("pixel-aspect-ratio") {
            s.fixate_field_nearest_fraction("pixel-aspect-ratio", exact);
        } else {
            s.set("pixel-aspect-ratio", exact);
        }
    }
    (w, h) == wanted
}

/// Chooses fixed caps among `candidates` for the other pad of `caps`, which are fixed: the exact
/// multiple if possible, else the largest allowed size below it with the same display aspect ratio,
/// in the format that loses the least.
pub(super) fn fixate(
    caps: &gst::CapsRef,
    candidates: &gst::Caps,
    map: Map,
    scale: u32,
) -> gst::Caps {
    let Ok(info) = video_info(caps) else { return candidates.clone() };
    let (in_w, in_h) = (info.width() as i32, info.height() as i32);
    let in_par = match info.par() {
        par if par.numer() > 0 && par.denom() > 0 => par,
        _ => gst::Fraction::new(1, 1),
    };
    let wanted = (map.target(in_w, scale), map.target(in_h, scale));

    let mut best: Option<((bool, u32), gst::Structure, gst::CapsFeatures)> = None;
    for (structure, features) in candidates.iter_with_features() {
        let mut s = structure.to_owned();
        let Some((format, loss)) = fixate_format(&mut s, info.format()) else { continue };
        let format = gst_video::VideoFormatInfo::from_format(format);
        let multiple = |sub: &[u32]| 1 << sub.iter().take(3).copied().max().unwrap_or(0);
        let multiple = (multiple(format.w_sub()), multiple(format.h_sub()));
        let exact = fixate_size(&mut s, (in_w, in_h), in_par, wanted, multiple);
        if let Some(colorimetry) = colorimetry_for(&info, &format) {
            offer_string(&mut s, "colorimetry", &colorimetry.to_string());
        }
        if colors::is_subsampled(&format) && colors::is_subsampled(&info.format_info()) {
            offer_string(&mut s, "chroma-site", &info.chroma_site().to_str());
        }
        s.fixate_field_nearest_fraction("framerate", info.fps());
        let rank = (!exact, loss);
        if best.as_ref().is_none_or(|(other, ..)| rank < *other) {
            best = Some((rank, s, features.to_owned()));
        }
    }
    let Some((_, s, features)) = best else { return candidates.clone() };
    let mut fixed = gst::Caps::new_empty();
    fixed.make_mut().append_structure_full(s, Some(features));
    fixed.fixate();
    colors::spelled_out(fixed)
}

#[cfg(test)]
mod tests;
