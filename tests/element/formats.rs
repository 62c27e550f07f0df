// SPDX-License-Identifier: MPL-2.0

//! What every format keeps on its way through the element.

use starsr_testkit::rig::*;

const SIZE: (u32, u32) = (14, 10);
/// Bytes of a pixel of the working formats.
const PIXEL: usize = 8;

/// The 16-bit format in which components of `format` are made and looked at, with the same colours.
fn working(info: &gst_video::VideoInfo) -> gst_video::VideoInfo {
    let format =
        if info.is_rgb() { gst_video::VideoFormat::Argb64 } else { gst_video::VideoFormat::Ayuv64 };
    gst_video::VideoInfo::builder(format, info.width(), info.height())
        .fps(info.fps())
        .colorimetry(&info.colorimetry())
        .chroma_site(info.chroma_site())
        .build()
        .unwrap()
}

/// A frame in another layout, its values as they are.
fn convert(
    frame: &gst::BufferRef,
    from: &gst_video::VideoInfo,
    to: &gst_video::VideoInfo,
) -> gst::Buffer {
    let mut config = gst_video::VideoConverterConfig::new();
    config.set_matrix_mode(gst_video::VideoMatrixMode::None);
    config.set_dither_method(gst_video::VideoDitherMethod::None);
    let converter = gst_video::VideoConverter::new(from, to, Some(config)).unwrap();
    let mut converted = gst::Buffer::with_size(to.size()).unwrap();
    let frame = gst_video::VideoFrameRef::from_buffer_ref_readable(frame, from).unwrap();
    let mut target =
        gst_video::VideoFrameRef::from_buffer_ref_writable(converted.make_mut(), to).unwrap();
    converter.frame_ref(&frame, &mut target);
    drop(target);
    converted
}

/// The words of alpha and the three components of each pixel.
fn words(frame: &gst::BufferRef, info: &gst_video::VideoInfo) -> Vec<[u16; 4]> {
    let bytes = bytes(&convert(frame, info, &working(info)));
    let word = |p: &[u8], c: usize| u16::from_ne_bytes([p[2 * c], p[2 * c + 1]]);
    bytes.chunks_exact(PIXEL).map(|p| [0, 1, 2, 3].map(|c| word(p, c))).collect()
}

fn frame_of(words: impl Iterator<Item = [u16; 4]>, info: &gst_video::VideoInfo) -> gst::Buffer {
    let bytes = words.flat_map(|w| w.map(u16::to_ne_bytes)).flatten().collect::<Vec<_>>();
    let mut frame = convert(&gst::Buffer::from_mut_slice(bytes), &working(info), info);
    frame.make_mut().set_pts(gst::ClockTime::ZERO);
    frame
}

fn input(format: gst_video::VideoFormat) -> gst_video::VideoInfo {
    // Of Mediatek's 10-bit tiles GStreamer converts only whole ones, 16 columns wide.
    let width = if format.to_str().starts_with("MT2110") { 16 } else { SIZE.0 };
    gst_video::VideoInfo::builder(format, width, SIZE.1)
        .fps(gst::Fraction::new(25, 1))
        .build()
        .unwrap()
}

/// The frame upscaled, and its format.
fn upscaled(
    frame: gst::Buffer,
    info: &gst_video::VideoInfo,
) -> (gst::Buffer, gst_video::VideoInfo) {
    let rig = Rig::new(starsr(1, 0), None);
    rig.start(&info.to_caps().unwrap().to_string());
    rig.push(frame).unwrap_or_else(|e| panic!("{}: {e:?} {:?}", info.format(), rig.errors()));
    rig.eos();
    let caps = &rig.caps_of_buffers()[0];
    let out = gst_video::VideoInfo::from_caps(caps).unwrap();
    assert_eq!(
        (out.format(), out.width(), out.height()),
        (info.format(), 4 * info.width(), 4 * info.height())
    );
    assert_eq!(out.colorimetry(), info.colorimetry());
    (rig.buffers().remove(0), out)
}

#[test]
fn black_stays_black_and_white_stays_white() {
    init();
    for format in gst_video::VideoFormat::iter_raw() {
        let info = input(format);
        let components = info.n_components().min(3) as usize;
        let (offset, scale) = info.format_info().range_offsets(info.colorimetry().range());
        for white in [false, true] {
            // In the middle of the words that are cut to the level.
            let level = |c: usize| {
                if info.format_info().has_palette() {
                    return if white { 0xffff } else { 0 };
                }
                let depth = info.comp_depth(c as u8);
                let bright = white && (c == 0 || info.is_rgb());
                let level = offset[c] + if bright { scale[c] } else { 0 };
                ((level as u32) << (16 - depth)) as u16 | (1 << (16 - depth)) >> 1
            };
            let word = [
                0xffff,
                level(0),
                if components > 1 { level(1) } else { 0x8000 },
                if components > 1 { level(2) } else { 0x8000 },
            ];
            let pixels = (info.width() * info.height()) as usize;
            let frame = frame_of(std::iter::repeat_n(word, pixels), &info);
            let before = words(&frame, &info)[0];
            let (after, out) = upscaled(frame, &info);
            for after in words(&after, &out) {
                for c in 0..components {
                    let depth =
                        if info.format_info().has_palette() { 2 } else { info.comp_depth(c as u8) };
                    let off = after[c + 1].abs_diff(before[c + 1]) >> (16 - depth);
                    assert!(
                        off <= 1,
                        "{format}, component {c}: {} becomes {}",
                        before[c + 1],
                        after[c + 1]
                    );
                }
            }
        }
    }
}

/// Alpha goes beside the picture: what is transparent, opaque, and between stays so at its place.
#[test]
fn alpha_is_upscaled_with_the_picture() {
    init();
    let mut formats = 0;
    for format in gst_video::VideoFormat::iter_raw() {
        let info = input(format);
        if !info.has_alpha() || info.format_info().has_palette() {
            continue;
        }
        formats += 1;
        // From transparent on the left to opaque on the right.
        let ramp = |x: f32| (x / (SIZE.0 - 1) as f32).clamp(0.0, 1.0);
        let colour = if info.is_rgb() { [0x9000; 3] } else { [0x9000, 0x8000, 0x8000] };
        let word = |i: u32| {
            [(ramp((i % SIZE.0) as f32) * 65535.0) as u16, colour[0], colour[1], colour[2]]
        };
        let frame = frame_of((0..SIZE.0 * SIZE.1).map(word), &info);
        let (after, out) = upscaled(frame, &info);
        let level = 1.0 / ((1u32 << info.comp_depth(3)) - 1) as f32;
        for (i, [alpha, ..]) in words(&after, &out).into_iter().enumerate() {
            let x = ((i as u32 % out.width()) as f32 + 0.5) / 4.0 - 0.5;
            // A cubic keeps a ramp but for the replicated edge.
            if (1.5..SIZE.0 as f32 - 2.5).contains(&x) {
                let (found, wanted) = (f32::from(alpha) / 65535.0, ramp(x));
                assert!(
                    (found - wanted).abs() < 2.0 * level,
                    "{format}, {x}: alpha is {found}, not {wanted}"
                );
            }
        }
    }
    assert!(formats >= 25, "only {formats} formats have an alpha");
}

#[test]
fn alpha_is_dropped_and_added_as_downstream_wants() {
    init();
    for (from, to) in
        [("ARGB", "RGB"), ("AYUV", "I420"), ("A420", "I420"), ("RGB", "ARGB"), ("I420", "A420")]
    {
        let info = input(gst_video::VideoFormat::from_string(from));
        let transparent = [0, 0x9000, 0x8000, 0x8000];
        let frame = frame_of(std::iter::repeat_n(transparent, (SIZE.0 * SIZE.1) as usize), &info);
        let rig = Rig::new(starsr(1, 0), Some(&format!("video/x-raw,format={to}")));
        rig.start(&info.to_caps().unwrap().to_string());
        rig.push(frame).unwrap();
        rig.eos();
        let out = gst_video::VideoInfo::from_caps(&rig.caps_of_buffers()[0]).unwrap();
        assert!(
            words(&rig.buffers()[0], &out).iter().all(|[alpha, ..]| *alpha == 0xffff),
            "{from} to {to}"
        );
    }
}
