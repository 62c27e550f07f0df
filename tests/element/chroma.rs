// SPDX-License-Identifier: MPL-2.0

//! Chroma stays on luma, wherever its samples lie. Stripes of luma and both chromas go in at the
//! same place, and are looked for in the planes that come out.

use std::f64::consts::TAU;

use starsr_testkit::rig::*;

const SCALE: usize = 4;
/// Pixels from stripe to stripe, before upscaling.
const PERIOD: f64 = 16.0;
/// Pixels at each end of the picture that are not measured.
const MARGIN: usize = 8;
/// The most that chroma may lie beside luma, in pixels of the output.
const BOUND: f64 = 0.3;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Axis {
    X,
    Y,
}

/// A plane's component: its place in a frame, and where in the picture its samples lie.
struct Component {
    plane: usize,
    /// Bytes before the first sample of a line, and from sample to sample.
    offset: usize,
    pixel: usize,
    /// Samples across and down.
    size: (usize, usize),
    /// Pixels from sample to sample, and before the first one.
    step: (usize, usize),
    start: (f64, f64),
    /// Bits that a sample's level is shifted by.
    shift: u32,
    depth: u32,
}

impl Component {
    fn new(info: &gst_video::VideoInfo, c: usize, site: &str) -> Self {
        let format = info.format_info();
        let (w, h) = (info.width() as usize, info.height() as usize);
        let step = (1 << format.w_sub()[c], 1 << format.h_sub()[c]);
        let cosited = match site {
            "mpeg2" => (true, false),
            "cosited" => (true, true),
            _ => (false, false),
        };
        let start =
            |step: usize, cosited: bool| if cosited { 0.0 } else { (step - 1) as f64 / 2.0 };
        let bytes = format.depth()[c].div_ceil(8) as usize;
        let plane = format.plane()[c] as usize;
        Self {
            plane,
            // GStreamer's description of P010 has a wrong one.
            offset: if info.n_planes() == 2 && c == 2 { bytes } else { 0 },
            pixel: if info.n_planes() == 2 && c > 0 { 2 * bytes } else { bytes },
            size: (w.div_ceil(step.0), h.div_ceil(step.1)),
            step,
            start: (start(step.0, cosited.0), start(step.1, cosited.1)),
            shift: format.shift()[c],
            depth: format.depth()[c],
        }
    }

    fn at(&self, info: &gst_video::VideoInfo, x: usize, y: usize) -> usize {
        let line = info.offset()[self.plane] + y * info.stride()[self.plane] as usize;
        line + x * self.pixel + self.offset
    }

    /// Where sample number `k` lies on `axis`.
    fn place(&self, axis: Axis, k: usize) -> f64 {
        match axis {
            Axis::X => (k * self.step.0) as f64 + self.start.0,
            Axis::Y => (k * self.step.1) as f64 + self.start.1,
        }
    }

    fn draw(&self, info: &gst_video::VideoInfo, bytes: &mut [u8], axis: Axis) {
        for y in 0..self.size.1 {
            for x in 0..self.size.0 {
                let place = self.place(axis, if axis == Axis::X { x } else { y });
                let level = 128.0 + 30.0 * (TAU * place / PERIOD).cos();
                let word =
                    ((level * f64::from(1 << (self.depth - 8))).round() as u16) << self.shift;
                let at = self.at(info, x, y);
                let word = word.to_le_bytes();
                let length = self.depth.div_ceil(8) as usize;
                bytes[at..at + length].copy_from_slice(&word[..length]);
            }
        }
    }

    /// How far the stripes lie right of, or below, where they were drawn.
    fn displacement(&self, info: &gst_video::VideoInfo, bytes: &[u8], axis: Axis) -> f64 {
        let (period, margin) = (PERIOD * SCALE as f64, (MARGIN * SCALE) as f64);
        let (across, along, size, step) = match axis {
            Axis::X => (self.size.1, self.size.0, info.width(), self.step.0),
            Axis::Y => (self.size.0, self.size.1, info.height(), self.step.1),
        };
        let periods = ((f64::from(size) - 2.0 * margin) / period).floor();
        let first = margin as usize / step;
        let last = first + (periods * period) as usize / step;
        assert!(periods >= 3.0 && last <= along);
        let level = |k: usize| {
            let sum: f64 = (0..across)
                .map(|o| {
                    let at =
                        if axis == Axis::X { self.at(info, k, o) } else { self.at(info, o, k) };
                    let high = if self.depth > 8 { bytes[at + 1] } else { 0 };
                    f64::from(u16::from_le_bytes([bytes[at], high]))
                })
                .sum();
            sum / across as f64
        };
        let (mut cos, mut sin) = (0.0, 0.0);
        for k in first..last {
            let angle = TAU * self.place(axis, k) / period;
            cos += level(k) * angle.cos();
            sin += level(k) * angle.sin();
        }
        sin.atan2(cos) / TAU * period
    }
}

/// How far chroma lies beside luma in the upscaled picture, at most.
fn displacement(
    format: &str,
    (width, height): (u32, u32),
    site: &str,
    said: &str,
    axis: Axis,
) -> f64 {
    let caps =
        format!("video/x-raw,format={format},width={width},height={height},framerate=25/1{said}");
    let parsed: gst::Caps = caps.parse().unwrap();
    let info = gst_video::VideoInfo::from_caps(&parsed).unwrap();
    let mut drawn = vec![0; info.size()];
    for c in 0..3 {
        Component::new(&info, c, site).draw(&info, &mut drawn, axis);
    }
    let mut frame = gst::Buffer::from_mut_slice(drawn);
    frame.make_mut().set_pts(gst::ClockTime::ZERO);
    let rig = Rig::new(starsr(1, 0), None);
    rig.start(&caps);
    rig.push(frame).unwrap();
    rig.eos();
    let out = gst_video::VideoInfo::from_caps(&rig.caps_of_buffers()[0]).unwrap();
    assert_eq!((out.width(), out.height()), (4 * width, 4 * height));
    let bytes = bytes(&rig.buffers()[0]);
    let of = |c| Component::new(&out, c, site).displacement(&out, &bytes, axis);
    let luma = of(0);
    [1, 2]
        .map(|c| of(c) - luma)
        .into_iter()
        .fold(0.0, |a, b| if b.abs() > f64::abs(a) { b } else { a })
}

#[track_caller]
fn check(format: &str, size: (u32, u32), site: &str, said: &str) {
    for axis in [Axis::X, Axis::Y] {
        let found = displacement(format, size, site, said, axis);
        assert!(
            found.abs() < BOUND,
            "{format} {size:?}{said}: {found:.2} pixels beside luma in {axis:?}"
        );
    }
}

#[test]
fn chroma_stays_on_luma_in_even_and_odd_sizes() {
    init();
    for format in ["I420", "NV12", "Y42B", "P010_10LE", "I420_10LE"] {
        for size in [(128, 96), (127, 95)] {
            check(format, size, "mpeg2", ",colorimetry=bt709,chroma-site=mpeg2");
            check(format, size, "jpeg", ",colorimetry=bt709,chroma-site=jpeg");
            check(format, size, "cosited", ",colorimetry=bt2100-pq,chroma-site=cosited");
        }
    }
    check("I420", (129, 96), "jpeg", ",colorimetry=bt709,chroma-site=none");
    check("I420", (128, 97), "mpeg2", ",colorimetry=bt709,chroma-site=mpeg2");
}

/// As decoders describe files without colour tags.
#[test]
fn chroma_stays_on_luma_where_the_caps_say_little() {
    init();
    for size in [(128, 96), (127, 95)] {
        check("I420", size, "mpeg2", ",chroma-site=mpeg2");
        check("I420", size, "jpeg", ",chroma-site=jpeg");
        check("I420", size, "mpeg2", ",chroma-site=mpeg2,colorimetry=(string)1:0:0:0");
        check("I420", size, "jpeg", ",colorimetry=(string)1:4:0:0");
        check("I420", size, "mpeg2", "");
        check("Y42B", size, "mpeg2", ",colorimetry=(string)2:0:0:0");
    }
}
