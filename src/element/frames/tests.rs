// SPDX-License-Identifier: MPL-2.0

use ndarray::Axis;
use starsr_testkit::guarded;

use super::*;

const SIZE: Size = Size { width: 66, height: 50 };

/// Smooth colours in the middle of the range, grey where `info` is, as `[3,h,w]`.
fn gradient(info: &gst_video::VideoInfo, size: Size) -> Array3<f32> {
    let Size { width, height } = size;
    let colour = |(c, y, x): (usize, usize, usize)| {
        let (x, y) = (x as f32 / width as f32, y as f32 / height as f32);
        0.5 + 0.35 * ((c as f32 + 1.0) * 1.7 * x + (3.0 - c as f32) * y).sin()
    };
    Array3::from_shape_fn((3, height, width), |(c, y, x)| {
        colour((if info.is_gray() { 1 } else { c }, y, x))
    })
}

fn stream(format: gst_video::VideoFormat, colorimetry: Option<&str>) -> gst_video::VideoInfo {
    let colorimetry = colorimetry.map(|c| c.parse::<gst_video::VideoColorimetry>().unwrap());
    gst_video::VideoInfo::builder(format, SIZE.width as u32, SIZE.height as u32)
        .fps(gst::Fraction::new(25, 1))
        .colorimetry_if_some(colorimetry.as_ref())
        .build()
        .unwrap()
}

fn written(info: &gst_video::VideoInfo, pixels: &Array3<f32>, threads: u32) -> gst::Buffer {
    let (_, height, width) = pixels.dim();
    let mut buffer = gst::Buffer::with_size(info.size()).unwrap();
    Writer::new(info, Size::new(width, height), threads)
        .unwrap()
        .write(&opaque(pixels), buffer.make_mut())
        .unwrap();
    buffer
}

fn opaque(pixels: &Array3<f32>) -> RgbFrame {
    RgbFrame { pixels: pixels.clone(), alpha: None }
}

fn read(info: &gst_video::VideoInfo, buffer: &gst::BufferRef) -> Array3<f32> {
    Reader::new(info, 1).unwrap().read(buffer).unwrap().pixels
}

/// Values of a planar or packed component of 8 or 16-bit words, as integers of its depth.
fn component(buffer: &gst::BufferRef, info: &gst_video::VideoInfo, component: u8) -> Vec<i32> {
    let frame = gst_video::VideoFrameRef::from_buffer_ref_readable(buffer, info).unwrap();
    let plane = info.comp_plane(component);
    let data = frame.plane_data(plane).unwrap();
    let stride = info.stride()[plane as usize] as usize;
    let (pixel, offset) =
        (info.comp_pstride(component) as usize, info.comp_poffset(component) as usize);
    let depth = info.comp_depth(component);
    let mut values = Vec::new();
    for y in 0..info.comp_height(component) as usize {
        for x in 0..info.comp_width(component) as usize {
            let at = y * stride + x * pixel + offset;
            let high = if depth > 8 { data[at + 1] } else { 0 };
            values.push(i32::from(u16::from_le_bytes([data[at], high])));
        }
    }
    values
}

#[test]
fn every_format_is_read_as_it_is_written() {
    gst::init().unwrap();
    for format in gst_video::VideoFormat::iter_raw() {
        let info = stream(format, None);
        let original = gradient(&info, SIZE);
        let difference = read(&info, &written(&info, &original, 1)) - &original;

        let description = info.format_info();
        // A palette has 3, 3 and 2 bits.
        let depth = if description.has_palette() {
            2
        } else {
            description.depth()[..info.n_components().min(3) as usize]
                .iter()
                .copied()
                .min()
                .unwrap()
        };
        let level = 1.0 / ((1 << depth) - 1) as f32;
        let mean = difference.mean().unwrap();
        let worst = difference.fold(0.0_f32, |worst, d| worst.max(d.abs()));
        let subsampled =
            description.w_sub()[..info.n_components() as usize].iter().any(|sub| *sub > 0);
        // Some of GStreamer's own formats of 10 bits and more are off by up to a level of 10 bits.
        assert!(mean.abs() <= (0.5 * level).max(1.1 / 1023.0), "{format}: {mean} off on average");
        assert!(worst <= if subsampled { 0.04 } else { 1.7 * level }, "{format}: {worst} off");
    }
}

#[test]
fn reading_and_writing_keeps_the_levels() {
    gst::init().unwrap();
    for (format, colorimetry, chroma) in [
        ("I420", Some("bt601"), 1),
        ("I420", Some("bt709"), 1),
        // As JPEG has it (yuvj420p).
        ("I420", Some("1:4:0:0"), 1),
        ("YV12", None, 1),
        ("NV12", Some("bt709"), 1),
        ("NV21", Some("bt709"), 1),
        ("Y42B", Some("bt709"), 1),
        ("UYVY", Some("bt601"), 1),
        ("Y444", Some("bt709"), 0),
        ("Y444", Some("1:4:0:0"), 0),
        ("Y444", Some("bt2020"), 0),
        ("RGB", None, 0),
        ("BGRA", None, 0),
        ("GRAY8", None, 0),
        ("GRAY8", Some("1:4:0:0"), 0),
        ("I420_10LE", Some("bt2100-pq"), 3),
        ("I422_10LE", Some("bt709"), 3),
        ("Y444_10LE", Some("bt709"), 0),
        ("I420_12LE", Some("bt2100-hlg"), 12),
    ] {
        let info = stream(gst_video::VideoFormat::from_string(format), colorimetry);
        let first = written(&info, &gradient(&info, SIZE), 1);
        let second = written(&info, &read(&info, &first), 1);
        for c in 0..info.n_components().min(3) as u8 {
            let (a, b) = (component(&first, &info, c), component(&second, &info, c));
            let worst = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).max().unwrap();
            let drift =
                a.iter().zip(&b).map(|(a, b)| f64::from(b - a)).sum::<f64>() / a.len() as f64;
            // Chroma that is interpolated and averaged again is blurred, but neither coloured nor
            // shifted.
            assert!(
                worst <= if c == 0 { 0 } else { chroma },
                "{format} {colorimetry:?} {c}: {worst} levels off"
            );
            assert!(
                drift.abs() < 0.07,
                "{format} {colorimetry:?} {c}: {drift} levels off on average"
            );
        }
    }
}

#[test]
fn levels_mean_what_the_range_says() {
    gst::init().unwrap();
    for (format, colorimetry, black, white) in [
        ("I420", "bt709", 16, 235),
        ("I420", "1:4:0:0", 0, 255),
        ("GRAY8", "2:4:0:0", 16, 235),
        ("GRAY8", "1:4:0:0", 0, 255),
        ("Y444_10LE", "bt709", 64, 940),
    ] {
        let info = stream(gst_video::VideoFormat::from_string(format), Some(colorimetry));
        for (value, level) in
            [(0.0, black), (1.0, white), (-3.0, black), (7.0, white), (f32::NAN, black)]
        {
            let buffer = written(&info, &Array3::from_elem((3, SIZE.height, SIZE.width), value), 1);
            if value.is_nan() {
                continue;
            }
            let luma = component(&buffer, &info, 0);
            assert!(
                luma.iter().all(|y| *y == level),
                "{format} {colorimetry}: {value} is {}",
                luma[0]
            );
            for c in 1..info.n_components() as u8 {
                let neutral = 1 << (info.comp_depth(c) - 1);
                assert!(
                    component(&buffer, &info, c).iter().all(|v| *v == neutral),
                    "{format} {value}"
                );
            }
        }
    }
}

#[test]
fn a_picture_of_another_size_is_resized() {
    gst::init().unwrap();
    for format in ["I420", "Y42B", "Y444", "RGB", "P010_10LE", "GRAY8"] {
        let info = stream(gst_video::VideoFormat::from_string(format), None);
        let expected = gradient(&info, SIZE);
        let large = gradient(&info, SIZE.enlarged(4).unwrap());
        let result = read(&info, &written(&info, &large, 1));
        let mean = (&result - &expected).map(|d| d.abs()).mean().unwrap();
        assert!(mean < 0.012, "{format}: {mean} off");
        for c in 0..3 {
            let means = [&result, &large].map(|p| p.index_axis(Axis(0), c).mean().unwrap());
            assert!((means[0] - means[1]).abs() < 0.002, "{format} {c}: {means:?}");
        }
    }
}

#[test]
fn threads_do_not_change_the_result() {
    gst::init().unwrap();
    for format in ["I420", "NV12", "Y42B", "RGB"] {
        let info = stream(gst_video::VideoFormat::from_string(format), None);
        let large = gradient(&info, SIZE.enlarged(2).unwrap());
        let [one, many] = [1, 3].map(|threads| read(&info, &written(&info, &large, threads)));
        assert!(one == many, "{format}");
    }
}

#[test]
fn a_picture_without_alpha_is_opaque() {
    gst::init().unwrap();
    let info = stream(gst_video::VideoFormat::Bgra, None);
    let buffer = written(&info, &gradient(&info, SIZE), 1);
    assert!(component(&buffer, &info, 3).iter().all(|alpha| *alpha == 255));

    // Transparent pixels have their colour all the same.
    let mut transparent = buffer.copy_deep().unwrap();
    transparent
        .make_mut()
        .map_writable()
        .unwrap()
        .iter_mut()
        .skip(3)
        .step_by(4)
        .for_each(|alpha| *alpha = 0);
    assert!(read(&info, &transparent) == read(&info, &buffer));
}

#[test]
fn alpha_is_read_as_it_is_written() {
    gst::init().unwrap();
    let mut formats = 0;
    for format in gst_video::VideoFormat::iter_raw() {
        let info = stream(format, None);
        let has_alpha = info.has_alpha() && !info.format_info().has_palette();
        let pixels = gradient(&info, SIZE);
        let ramp = |(_, y, x): (usize, usize, usize)| {
            (y * SIZE.width + x) as f32 / (SIZE.width * SIZE.height - 1) as f32
        };
        let alpha = Array3::from_shape_fn((1, SIZE.height, SIZE.width), ramp);
        let picture = RgbFrame { pixels: pixels.clone(), alpha: Some(alpha.clone()) };
        let mut buffer = gst::Buffer::with_size(info.size()).unwrap();
        Writer::new(&info, SIZE, 1).unwrap().write(&picture, buffer.make_mut()).unwrap();
        let found = Reader::new(&info, 1).unwrap().read(&buffer).unwrap();

        assert!(
            found.pixels == read(&info, &written(&info, &pixels, 1)),
            "{format}: alpha shows in the colours"
        );
        assert_eq!(found.alpha.is_some(), has_alpha, "{format}");
        let Some(found) = found.alpha else { continue };
        formats += 1;
        let level = 1.0 / ((1u32 << info.comp_depth(3)) - 1) as f32;
        let worst = (found - &alpha).fold(0.0_f32, |worst, d| worst.max(d.abs()));
        assert!(worst <= 0.5 * level + 1e-5, "{format}: alpha is {worst} off, a level is {level}");
    }
    assert!(formats >= 25, "only {formats} formats have an alpha");
}

#[test]
fn alpha_of_another_size_is_refused_and_large_alpha_is_resized() {
    gst::init().unwrap();
    let info = stream(gst_video::VideoFormat::A420, None);
    let large = SIZE.enlarged(4).unwrap();
    let mut buffer = gst::Buffer::with_size(info.size()).unwrap();
    let mut writer = Writer::new(&info, large, 1).unwrap();
    let pixels = gradient(&info, large);
    let alpha = Array3::from_elem((1, large.height, large.width), 0.25);
    let small = RgbFrame {
        pixels: pixels.clone(),
        alpha: Some(Array3::zeros((1, SIZE.height, SIZE.width))),
    };
    assert!(writer.write(&small, buffer.make_mut()).is_err());
    writer.write(&RgbFrame { pixels, alpha: Some(alpha) }, buffer.make_mut()).unwrap();
    assert!(component(&buffer, &info, 3).iter().all(|alpha| *alpha == 64));
}

#[test]
fn a_short_buffer_is_an_error() {
    gst::init().unwrap();
    let info = stream(gst_video::VideoFormat::I420, None);
    let short = gst::Buffer::with_size(info.size() / 2).unwrap();
    let error = Reader::new(&info, 1).unwrap().read(&short).unwrap_err();
    assert!(error.message.contains("66x50"), "{error}");
}

/// GStreamer's functions for some formats work on groups of pixels, whatever the width. Beyond
/// these buffers is a crash.
#[test]
fn nothing_outside_a_buffer_is_touched() {
    gst::init().unwrap();
    for format in gst_video::VideoFormat::iter_raw() {
        for (width, height) in (1..=28).flat_map(|width| [1, 2, 3, 6].map(|height| (width, height)))
        {
            let info = gst_video::VideoInfo::builder(format, width, height).build().unwrap();
            for flags in
                [gst_video::VideoFrameFlags::empty(), gst_video::VideoFrameFlags::INTERLACED]
            {
                let guarded = || {
                    let mut buffer = gst::Buffer::new();
                    let b = buffer.make_mut();
                    b.append_memory(gst::Memory::from_mut_slice(guarded::Guarded::new(
                        info.size(),
                        77,
                    )));
                    gst_video::VideoMeta::add_from_info(b, flags, &info).unwrap();
                    buffer
                };
                let picture = Reader::new(&info, 1).unwrap().read(&guarded()).unwrap();
                let size = Size::new(width as usize, height as usize);
                Writer::new(&info, size, 1).unwrap().write(&picture, guarded().make_mut()).unwrap();
            }
        }
    }
}

/// Chroma that lies on lines of luma is read where it lies: a ramp stays a ramp.
#[test]
fn chroma_on_lines_is_read_where_it_lies() {
    gst::init().unwrap();
    for (format, height) in [("I420", 50), ("I420", 51), ("I420_10LE", 51), ("YUV9", 50)] {
        let format = gst_video::VideoFormat::from_string(format);
        let info = gst_video::VideoInfo::builder(format, SIZE.width as u32, height)
            .chroma_site(gst_video::VideoChromaSite::COSITED)
            .build()
            .unwrap();
        let step = 1 << info.format_info().h_sub()[1];
        let (unit, bytes) = if info.comp_depth(0) == 8 { (1, 1) } else { (4, 2) };
        let mut buffer = gst::Buffer::with_size(info.size()).unwrap();
        let mut frame =
            gst_video::VideoFrameRef::from_buffer_ref_writable(buffer.make_mut(), &info).unwrap();
        for plane in 0..3 {
            let stride = info.stride()[plane as usize] as usize;
            let lines = frame.plane_data_mut(plane).unwrap().chunks_mut(stride);
            for (y, line) in lines.enumerate() {
                let level = unit * if plane == 0 { 128 } else { 100 + (y * step) as u16 };
                line.chunks_mut(bytes)
                    .for_each(|s| s.copy_from_slice(&level.to_le_bytes()[..bytes]));
            }
        }
        drop(frame);
        let pixels = read(&info, &buffer);
        // Blue minus luma is proportional to U, which grows by a level from line to line.
        let blue = |y: usize| pixels[[2, y, 20]];
        let level = (blue(8 * step) - blue(0)) / (8 * step) as f32;
        let last = (height as usize - 1) / step * step;
        assert!(level > 0.0);
        for y in 0..height as usize {
            let off = (blue(y) - blue(0)) / level - y.min(last) as f32;
            assert!(off.abs() < 0.1, "{format}, line {y} of {height}: {off} lines off");
        }
    }
}

/// GStreamer's converter mixes up chroma where the parts of two threads meet, each time in another
/// way.
#[test]
fn threads_make_no_difference() {
    gst::init().unwrap();
    // A part has at least 200 rows.
    let size = Size { width: 16, height: 1100 };
    for format in gst_video::VideoFormat::iter_raw() {
        let info = gst_video::VideoInfo::builder(format, size.width as u32, size.height as u32)
            .build()
            .unwrap();
        let original = gradient(&info, size);
        let alone = written(&info, &original, 1);
        let pixels = read(&info, &alone);
        for _ in 0..3 {
            let together = read(&info, &written(&info, &original, 4));
            assert!(together == pixels, "{format} is written otherwise");
            let together = Reader::new(&info, 4).unwrap().read(&alone).unwrap().pixels;
            assert!(together == pixels, "{format} is read otherwise");
        }
    }
}
