// SPDX-License-Identifier: MPL-2.0

//! The element `starsrofficialsize`.

use gst::prelude::*;
use gst_app::{AppSink, AppSrc};
use ndarray::Array3;
use starsr::Size;
use starsr::geometry::bytes::{Rescale, centred};
use starsr_testkit::rig::init;

fn picture(height: usize, width: usize) -> Array3<u8> {
    Array3::from_shape_fn((3, height, width), |(c, y, x)| (c * 91 + y * 37 + x * x * 53) as u8)
}

/// What the element makes of a picture, and the caps behind it.
fn made_of(picture: &Array3<u8>) -> (Array3<u8>, gst::Structure) {
    init();
    let (_, height, width) = picture.dim();
    let text = format!(
        "appsrc name=in caps=video/x-raw,format=RGB,width={width},height={height},framerate=25/1 ! \
         starsrofficialsize ! appsink name=out sync=false"
    );
    let pipeline = gst::parse::launch(&text).unwrap().downcast::<gst::Pipeline>().unwrap();
    let source = pipeline.by_name("in").unwrap().downcast::<AppSrc>().unwrap();
    let sink = pipeline.by_name("out").unwrap().downcast::<AppSink>().unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let row = (3 * width).next_multiple_of(4);
    let mut bytes = vec![0; row * height];
    for ((c, y, x), &v) in picture.indexed_iter() {
        bytes[y * row + 3 * x + c] = v;
    }
    source.push_buffer(gst::Buffer::from_mut_slice(bytes)).unwrap();
    source.end_of_stream().unwrap();
    let sample = sink.pull_sample().unwrap();
    let caps = sample.caps().unwrap().structure(0).unwrap().to_owned();
    let map = sample.buffer().unwrap().map_readable().unwrap();
    let result = Array3::from_shape_fn((3, 480, 720), |(c, y, x)| map[(y * 720 + x) * 3 + c]);
    drop(map);
    pipeline.set_state(gst::State::Null).unwrap();
    (result, caps)
}

/// Wider, as wide, narrower, and of another height.
#[test]
fn frames_are_those_of_the_authors_program() {
    for (height, width) in [(540, 1280), (480, 720), (500, 720), (120, 180), (31, 33)] {
        let picture = picture(height, width);
        let (found, caps) = made_of(&picture);
        let rescaled = Rescale::of(width, 720).apply(picture.view()).unwrap();
        let expected = centred(rescaled.view(), Size::new(720, 480)).unwrap();
        assert!(found == expected, "{width}x{height}");
        assert_eq!((caps.get("width"), caps.get("height")), (Ok(720), Ok(480)));
        assert_eq!(caps.get("framerate"), Ok(gst::Fraction::new(25, 1)));
    }
}
