// SPDX-License-Identifier: MPL-2.0

//! Negotiation: any caps on both sides.

use arbitrary::Arbitrary;
use gst::prelude::*;

use crate::rig::{self, FRAME, Rig};

/// What both sides can do, and what upstream sends.
#[derive(Debug, Arbitrary)]
pub struct Input {
    accepted: Side,
    filter: Option<Side>,
    /// Caps that upstream sends one after the other.
    sent: Vec<Fixed>,
    /// The factor asked for: 0 is the bundle's.
    scale: u8,
}

#[derive(Debug, Arbitrary)]
enum Side {
    Any,
    Empty,
    Some(Vec<Structure>),
}

#[derive(Debug, Arbitrary)]
struct Structure {
    feature: u8,
    formats: Vec<u8>,
    width: Sizes,
    height: Sizes,
    pixel_aspect_ratio: Fractions,
    framerate: Fractions,
    words: Words,
    /// A field that has the wrong type.
    wrong: Option<u8>,
}

#[derive(Debug, Arbitrary)]
struct Fixed {
    feature: u8,
    format: u8,
    width: Length,
    height: Length,
    pixel_aspect_ratio: Option<(u16, u16)>,
    framerate: Option<(u16, u16)>,
    words: Words,
}

/// Fields that take words.
#[derive(Debug, Arbitrary)]
struct Words {
    colorimetry: Option<u8>,
    chroma_site: Option<u8>,
    interlace_mode: Option<u8>,
    multiview: Option<u8>,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Length {
    Small(u8),
    Scaled(u8),
    /// So far below the largest number.
    Huge(u8),
    Zero,
}

#[derive(Debug, Arbitrary)]
enum Sizes {
    Absent,
    One(Length),
    Range(Length, Length, u8),
    /// Never with ranges, as GStreamer 1.22 cannot compare lists that hold both, and never empty,
    /// as it says that an empty list intersects with anything.
    List(Vec<Length>),
}

#[derive(Debug, Arbitrary)]
enum Fractions {
    Absent,
    One(i32, i32),
    Range((i32, i32), (i32, i32)),
    List(Vec<(u8, u8)>),
}

impl Length {
    fn value(self) -> i32 {
        match self {
            Self::Small(side) => i32::from(side % 24) + 1,
            Self::Scaled(side) => (i32::from(side % 24) + 1) * 4,
            Self::Huge(less) => i32::MAX - i32::from(less),
            Self::Zero => 0,
        }
    }
}

/// A range of sizes, with its bounds on the grid of the step as GStreamer asks for.
fn range(a: Length, b: Length, step: u8) -> gst::IntRange<i32> {
    let step = i32::from(step % 32) + 1;
    let (a, b) = (a.value() / step * step, b.value() / step * step);
    match a.cmp(&b) {
        std::cmp::Ordering::Less => gst::IntRange::<i32>::with_step(a, b, step),
        std::cmp::Ordering::Greater => gst::IntRange::<i32>::with_step(b, a, step),
        std::cmp::Ordering::Equal => gst::IntRange::<i32>::new(1, i32::MAX),
    }
}

impl Sizes {
    fn set(&self, structure: &mut gst::Structure, field: &str) {
        match self {
            Self::Absent => {}
            Self::List(lengths) if lengths.is_empty() => {}
            Self::One(length) => structure.set(field, length.value()),
            Self::Range(a, b, step) => structure.set(field, range(*a, *b, *step)),
            Self::List(lengths) => {
                structure.set(field, gst::List::new(lengths.iter().take(4).map(|l| l.value())));
            }
        }
    }
}

/// A fraction as GStreamer can hold it.
fn fraction((numer, denom): (i32, i32)) -> gst::Fraction {
    gst::Fraction::new(numer.max(-i32::MAX), denom.saturating_abs().max(1))
}

impl Fractions {
    fn set(&self, structure: &mut gst::Structure, field: &str) {
        match self {
            Self::Absent => {}
            Self::List(fractions) if fractions.is_empty() => {}
            Self::One(numer, denom) => structure.set(field, fraction((*numer, *denom))),
            Self::Range(a, b) => {
                let (a, b) = (fraction(*a), fraction(*b));
                match a.partial_cmp(&b) {
                    Some(std::cmp::Ordering::Less) => {
                        structure.set(field, gst::FractionRange::new(a, b));
                    }
                    Some(std::cmp::Ordering::Greater) => {
                        structure.set(field, gst::FractionRange::new(b, a));
                    }
                    _ => structure.set(field, a),
                }
            }
            Self::List(fractions) => {
                let fractions =
                    fractions.iter().take(4).map(|&(n, d)| fraction((n.into(), d.into())));
                structure.set(field, gst::List::new(fractions));
            }
        }
    }
}

impl Words {
    fn set(&self, structure: &mut gst::Structure) {
        const COLORIMETRIES: [&str; 8] =
            ["bt601", "bt709", "bt2020-10", "bt2100-pq", "sRGB", "1:4:0:0", "2:0:7:9", "no:thing"];
        const SITES: [&str; 6] = ["mpeg2", "jpeg", "dv", "cosited", "none", "nothing"];
        const MODES: [&str; 6] =
            ["progressive", "interleaved", "mixed", "fields", "alternate", "nothing"];
        const VIEWS: [&str; 4] = ["mono", "side-by-side", "frame-by-frame", "nothing"];
        for (field, word, words) in [
            ("colorimetry", self.colorimetry, &COLORIMETRIES[..]),
            ("chroma-site", self.chroma_site, &SITES),
            ("interlace-mode", self.interlace_mode, &MODES),
            ("multiview-mode", self.multiview, &VIEWS),
        ] {
            if let Some(word) = word {
                structure.set(field, words[usize::from(word) % words.len()]);
            }
        }
    }
}

fn features(number: u8) -> gst::CapsFeatures {
    match number % 16 {
        1 => gst::CapsFeatures::new([gst_video::CAPS_FEATURE_FORMAT_INTERLACED]),
        2 => gst::CapsFeatures::new(["memory:DMABuf"]),
        3 => gst::CapsFeatures::new_any(),
        4 => gst::CapsFeatures::new(["memory:SystemMemory", "meta:GstVideoOverlayComposition"]),
        _ => gst::CapsFeatures::new(["memory:SystemMemory"]),
    }
}

impl Structure {
    fn add_to(&self, caps: &mut gst::Caps) {
        let mut structure = gst::Structure::new_empty("video/x-raw");
        match self.formats.as_slice() {
            [] => {}
            [one] => structure.set("format", super::format(*one).to_str()),
            more => {
                let formats = more.iter().take(6).map(|f| super::format(*f).to_str());
                structure.set("format", gst::List::new(formats));
            }
        }
        self.width.set(&mut structure, "width");
        self.height.set(&mut structure, "height");
        self.pixel_aspect_ratio.set(&mut structure, "pixel-aspect-ratio");
        self.framerate.set(&mut structure, "framerate");
        self.words.set(&mut structure);
        if let Some(field) = self.wrong {
            let fields =
                ["width", "format", "pixel-aspect-ratio", "framerate", "colorimetry", "views"];
            structure.set(fields[usize::from(field) % fields.len()], 1.5f64);
        }
        caps.make_mut().append_structure_full(structure, Some(features(self.feature)));
    }
}

impl Side {
    fn caps(&self) -> gst::Caps {
        match self {
            Self::Any => gst::Caps::new_any(),
            Self::Empty => gst::Caps::new_empty(),
            Self::Some(structures) => {
                let mut caps = gst::Caps::new_empty();
                structures.iter().take(4).for_each(|s| s.add_to(&mut caps));
                caps
            }
        }
    }
}

impl Fixed {
    fn caps(&self) -> gst::Caps {
        let mut structure = gst::Structure::new_empty("video/x-raw");
        structure.set("format", super::format(self.format).to_str());
        structure.set("width", self.width.value());
        structure.set("height", self.height.value());
        for (field, value) in
            [("pixel-aspect-ratio", self.pixel_aspect_ratio), ("framerate", self.framerate)]
        {
            if let Some((numer, denom)) = value {
                structure.set(field, fraction((numer.into(), denom.into())));
            }
        }
        self.words.set(&mut structure);
        let mut caps = gst::Caps::new_empty();
        // Features that are any are not fixed.
        let feature = if self.feature % 16 == 3 { 0 } else { self.feature };
        caps.make_mut().append_structure_full(structure, Some(features(feature)));
        caps
    }
}

/// What the pad answers: within its template and within the filter.
fn check_query(pad: &gst::Pad, filter: Option<&gst::Caps>) -> gst::Caps {
    let answer = pad.query_caps(filter);
    assert!(answer.is_subset(&pad.pad_template_caps()), "{answer}");
    if let Some(filter) = filter {
        assert!(answer.is_subset(filter), "{answer} is not within {filter}");
        let whole = pad.query_caps(None);
        assert_eq!(
            answer.is_empty(),
            !whole.can_intersect(filter),
            "{answer}, but {whole} and {filter}"
        );
    }
    answer
}

/// Negotiates: no panic, and what is chosen is fixed, possible for downstream, and works.
pub fn run(input: &Input) {
    super::keep_sessions();
    let accepted = input.accepted.caps();
    let filter = input.filter.as_ref().map(Side::caps);
    let element = rig::starsr(1, 0);
    element.set_property("scale", u32::from(input.scale % 9));
    let pads = ["sink", "src"].map(|name| element.static_pad(name).unwrap());
    // Before the model is known, and then with it.
    for pad in &pads {
        check_query(pad, filter.as_ref());
    }
    // Otherwise they cannot be linked.
    if !pads[1].query_caps(None).can_intersect(&accepted) {
        return;
    }
    let rig = Rig::new(element, Some(&accepted.to_string()));
    for pad in &pads {
        check_query(pad, filter.as_ref());
    }

    rig.event(gst::event::StreamStart::new("test"));
    let mut before = gst::Caps::new_empty();
    for (k, sent) in (0..).zip(input.sent.iter().take(4)) {
        let caps = sent.caps();
        send(&rig, &accepted, &caps, &before, k);
        before = caps;
    }
}

fn send(rig: &Rig, accepted: &gst::Caps, caps: &gst::Caps, before: &gst::Caps, k: u64) {
    let offered = rig.src.peer_query_caps(None);
    let offers = caps.is_subset(&offered);
    let accepts = rig.src.peer_query_accept_caps(caps);
    assert!(accepts || !offers, "{caps} is within {offered}, but is not accepted");

    rig.forget();
    rig.event(gst::event::Caps::new(caps));
    rig.segment(gst::ClockTime::ZERO);
    let info = gst_video::VideoInfo::from_caps(caps).ok();
    let size = info.map(|info| info.size()).filter(|size| *size <= 1 << 16);
    let mut buffer = gst::Buffer::from_mut_slice(vec![128; size.unwrap_or(16)]);
    buffer.make_mut().set_pts(FRAME * k);
    let flow = rig.push(buffer);
    let errors = super::errors(rig);
    match flow {
        Ok(_) => {
            let out = rig
                .element
                .static_pad("src")
                .unwrap()
                .current_caps()
                .expect("caps precede buffers");
            assert!(out.is_fixed() && out.is_subset(accepted), "{out} is not within {accepted}");
            let info = gst_video::VideoInfo::from_caps(&out).expect("video");
            let sizes: Vec<_> = rig.buffers().iter().map(|b| b.size()).collect();
            assert_eq!(sizes, [info.size()], "{caps} became {out}");
        }
        Err(gst::FlowError::NotNegotiated | gst::FlowError::Error) => {
            // The same caps are reported once.
            let told = !errors.is_empty() || caps == before;
            assert!(told || !offers, "{caps} is within {offered}, but was refused silently");
            assert!(rig.buffers().is_empty());
        }
        Err(other) => panic!("{caps}: {other:?} {errors:?}"),
    }
}
