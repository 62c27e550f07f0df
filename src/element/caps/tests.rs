// SPDX-License-Identifier: MPL-2.0

use super::*;

fn caps(text: &str) -> gst::Caps {
    gst::init().unwrap();
    text.parse().unwrap()
}

/// The sizes of the first structure that is an exact multiple, as text.
fn mapped(map: Map, scale: u32, width: &str, height: &str) -> Option<(String, String)> {
    let input = caps(&format!("video/x-raw,format=I420,width={width},height={height}"));
    let mapped = scaled(input.structure(0).unwrap(), map, scale)?;
    let text = |field| {
        let value = mapped.value(field).unwrap();
        let caps = gst::Caps::builder("x/y").field("v", value.clone()).build();
        caps.to_string().split_once("v=").unwrap().1.replace("(int)", "")
    };
    Some((text("width"), text("height")))
}

#[track_caller]
fn check(map: Map, scale: u32, (width, height): (&str, &str), expected: Option<(&str, &str)>) {
    let found = mapped(map, scale, width, height);
    assert_eq!(found.as_ref().map(|(w, h)| (w.as_str(), h.as_str())), expected);
}

#[test]
fn sizes_are_multiplied() {
    check(Map::Up, 4, ("160", "91"), Some(("640", "364")));
    check(Map::Up, 1, ("161", "91"), Some(("161", "91")));
    check(Map::Up, 4, ("[1,100]", "90"), Some(("[ 4, 400, 4 ]", "360")));
    check(Map::Up, 4, ("[16,96,16]", "90"), Some(("[ 64, 384, 64 ]", "360")));
    check(Map::Up, 4, ("{16,32}", "{8,[10,20]}"), Some(("{ 64, 128 }", "{ 32, [ 40, 80, 4 ] }")));
    check(Map::Up, 4, ("[1,2147483647]", "90"), Some(("[ 4, 2147483644, 4 ]", "360")));
    check(Map::Up, 4, ("[0,8]", "90"), Some(("[ 4, 32, 4 ]", "360")));
    check(Map::Up, 4, ("536870911", "1"), Some(("2147483644", "4")));
    check(Map::Up, 4, ("536870912", "1"), None);
    check(Map::Up, 4, ("{536870912,8}", "1"), Some(("32", "4")));
}

#[test]
fn sizes_are_divided() {
    check(Map::Down, 4, ("640", "364"), Some(("160", "91")));
    check(Map::Down, 4, ("641", "364"), None);
    check(Map::Down, 4, ("[1,400]", "360"), Some(("[ 1, 100 ]", "90")));
    check(Map::Down, 4, ("[5,11]", "360"), Some(("2", "90")));
    check(Map::Down, 4, ("[5,7]", "360"), None);
    check(Map::Down, 4, ("[16,400,16]", "360"), Some(("[ 4, 100, 4 ]", "90")));
    check(Map::Down, 4, ("[6,402,6]", "360"), Some(("[ 3, 99, 3 ]", "90")));
    check(Map::Down, 3, ("[2,100,2]", "360"), Some(("[ 2, 32, 2 ]", "120")));
    check(Map::Down, 4, ("{640,641,[8,16]}", "360"), Some(("{ 160, [ 2, 4 ] }", "90")));
    check(Map::Down, 4, ("{641,642}", "360"), None);
    check(Map::Down, 4, ("[1,2147483647]", "360"), Some(("[ 1, 536870911 ]", "90")));
}

#[test]
fn dividing_undoes_multiplying() {
    for scale in 1..=8 {
        for (width, height) in
            [("160", "91"), ("[ 16, 96, 16 ]", "[ 1, 100 ]"), ("{ 16, 35 }", "7")]
        {
            let (w, h) = mapped(Map::Up, scale, width, height).unwrap();
            check(Map::Down, scale, (&w, &h), Some((width, height)));
        }
    }
}

#[test]
fn everything_else_is_kept() {
    let input = caps(
        "video/x-raw,format=I420_10LE,width=160,height=90,framerate=30000/1001,pixel-aspect-ratio=4/3,\
         colorimetry=bt2100-pq,chroma-site=mpeg2,multiview-mode=mono,max-framerate=60/1,\
         mastering-display-info=1:2:3,content-light-level=1000:100",
    );
    let output = transform(&input, Map::Up, Some(4));
    let mut expected = input.structure(0).unwrap().to_owned();
    expected.set("width", 640);
    expected.set("height", 360);
    assert_eq!(output.structure(0).unwrap(), expected.as_ref());
}

#[test]
fn exact_sizes_come_first_and_the_format_is_kept_where_possible() {
    let output = transform(&caps("video/x-raw,format=I420,width=160,height=90"), Map::Up, Some(4));
    let formats: Vec<_> = output.iter().map(|s| s.get::<&str>("format").ok()).collect();
    let exact: Vec<_> = output.iter().map(|s| s.get::<i32>("width") == Ok(640)).collect();
    assert_eq!(formats, [Some("I420"), None, Some("I420"), None]);
    assert_eq!(exact, [true, true, false, false]);
}

#[test]
fn without_a_scale_every_size_is_possible() {
    let output = transform(&caps("video/x-raw,format=I420,width=160,height=90"), Map::Up, None);
    assert!(output.iter().all(|s| s.get::<i32>("width").is_err()));
    assert!(output.can_intersect(&caps("video/x-raw,width=999,height=3")));
}

#[test]
fn special_caps() {
    gst::init().unwrap();
    assert!(transform(&gst::Caps::new_any(), Map::Up, Some(4)).is_any());
    assert!(transform(&gst::Caps::new_empty(), Map::Up, Some(4)).is_empty());
    // Too large to be enlarged exactly: what is left is any size.
    let large = transform(&caps("video/x-raw,width=2147483647,height=2"), Map::Up, Some(4));
    assert!(!large.is_empty() && large.iter().all(|s| s.get::<i32>("width").is_err()));
}

/// What is negotiated for `input` where downstream takes `wanted`.
fn negotiated(input: &str, wanted: &str) -> gst::Caps {
    let input = caps(input);
    let candidates = caps(wanted)
        .intersect_with_mode(&transform(&input, Map::Up, Some(4)), gst::CapsIntersectMode::First);
    let fixed = fixate(&input, &candidates, Map::Up, 4);
    assert!(fixed.is_fixed(), "{fixed}");
    assert!(fixed.is_subset(&candidates), "{fixed} is not among {candidates}");
    gst_video::VideoInfo::from_caps(&fixed).unwrap();
    fixed
}

#[track_caller]
fn check_size(input: (i32, i32, &str), wanted: &str, expected: (i32, i32, (i32, i32))) {
    let (width, height, rest) = input;
    let input =
        format!("video/x-raw,format=I420,framerate=25/1,width={width},height={height}{rest}");
    let fixed = negotiated(&input, &format!("video/x-raw{wanted}"));
    let s = fixed.structure(0).unwrap();
    let par = s.get::<gst::Fraction>("pixel-aspect-ratio").unwrap();
    let found = (s.get("width").unwrap(), s.get("height").unwrap(), (par.numer(), par.denom()));
    assert_eq!(found, expected, "{input} to {wanted}");
}

#[test]
fn the_size_is_the_multiple_unless_another_is_wanted() {
    check_size((160, 90, ""), "", (640, 360, (1, 1)));
    check_size((161, 91, ""), "", (644, 364, (1, 1)));
    check_size((160, 90, ",pixel-aspect-ratio=4/3"), "", (640, 360, (4, 3)));
    check_size((160, 90, ""), ",width=640", (640, 360, (1, 1)));
    check_size((160, 90, ""), ",width=[16,4096,2],height=[16,4096,2]", (640, 360, (1, 1)));
}

#[test]
fn one_side_gives_the_other() {
    check_size((160, 90, ""), ",width=1000", (1000, 562, (1, 1)));
    check_size((160, 90, ""), ",height=1080", (1920, 1080, (1, 1)));
    check_size((160, 90, ""), ",height=720,width=[1,4000]", (1280, 720, (1, 1)));
    check_size((160, 90, ",pixel-aspect-ratio=4/3"), ",width=320", (320, 180, (4, 3)));
    // Square pixels are asked for, so the picture gets wider.
    check_size(
        (720, 576, ",pixel-aspect-ratio=16/15"),
        ",height=1152,pixel-aspect-ratio=1/1",
        (1536, 1152, (1, 1)),
    );
    check_size(
        (720, 576, ",pixel-aspect-ratio=16/15"),
        ",pixel-aspect-ratio=1/1",
        (2880, 2160, (1, 1)),
    );
}

#[test]
fn two_sides_change_the_pixels_shape() {
    check_size((160, 90, ""), ",width=1000,height=1000", (1000, 1000, (16, 9)));
    check_size((160, 90, ""), ",width=1920,height=1080", (1920, 1080, (1, 1)));
    // 562.5 lines: no line is half, so pixels stay square.
    check_size((160, 90, ""), ",width=1000,height=563", (1000, 563, (1, 1)));
    // Nothing can be done about a shape that is asked for.
    check_size(
        (160, 90, ""),
        ",width=1000,height=1000,pixel-aspect-ratio=1/1",
        (1000, 1000, (1, 1)),
    );
}

#[test]
fn ranges_are_filled_up_to_the_multiple() {
    check_size((160, 90, ""), ",width=[1,300],height=[1,300]", (300, 168, (1, 1)));
    check_size((160, 90, ""), ",width=[1,4000],height=[1,180]", (320, 180, (1, 1)));
    check_size((160, 90, ""), ",width=[1000,2000],height=[1000,2000]", (1000, 1000, (16, 9)));
    check_size((160, 90, ""), ",width={320,1280},height={180,720}", (320, 180, (1, 1)));
}

#[test]
fn the_format_that_loses_least_is_taken() {
    for (from, wanted, expected) in [
        ("I420", "{RGB,NV12,I420}", "I420"),
        ("I420", "{RGB,NV12,Y444}", "NV12"),
        ("I420", "{GRAY8,RGB}", "RGB"),
        ("Y444", "{I420,Y42B}", "Y42B"),
        ("I420_10LE", "{I420,P010_10LE,RGB}", "P010_10LE"),
        ("I420_10LE", "{I420,Y444_10LE}", "Y444_10LE"),
        ("RGB", "{I420,BGRx,Y444}", "BGRx"),
        ("RGB", "{I420,Y444}", "Y444"),
        ("GRAY8", "{I420,GRAY16_LE}", "GRAY16_LE"),
        ("RGB", "{RGB8P,I420}", "I420"),
    ] {
        let input = format!("video/x-raw,format={from},width=160,height=90,framerate=25/1");
        let fixed = negotiated(&input, &format!("video/x-raw,format={wanted}"));
        assert_eq!(
            fixed.structure(0).unwrap().get::<&str>("format").unwrap(),
            expected,
            "{from} to {wanted}"
        );
    }
}

#[test]
fn an_exact_size_in_another_format_beats_the_format_in_another_size() {
    let input = "video/x-raw,format=I420,width=160,height=90,framerate=25/1";
    let fixed =
        negotiated(input, "video/x-raw,format=I420,width=100,height=50;video/x-raw,format=RGB");
    let s = fixed.structure(0).unwrap();
    assert_eq!((s.get::<&str>("format").unwrap(), s.get::<i32>("width").unwrap()), ("RGB", 640));
}

#[test]
fn colours_are_said_where_the_default_depends_on_the_size() {
    let of = |input: &str, wanted: &str| {
        let fixed =
            negotiated(&format!("video/x-raw,width=426,height=240,framerate=15/1,{input}"), wanted);
        fixed.structure(0).unwrap().get::<String>("colorimetry").unwrap()
    };
    // By default a picture of 240 lines is BT.601 and one of 960 lines BT.709.
    assert_eq!(of("format=I420", "video/x-raw"), "bt601");
    assert_eq!(of("format=I420,colorimetry=bt709", "video/x-raw"), "bt709");
    assert_eq!(of("format=I420,colorimetry=(string)1:4:0:0", "video/x-raw"), "1:4:0:0");
    assert_eq!(of("format=I420,colorimetry=(string)1:4:0:0", "video/x-raw,format=NV12"), "1:4:0:0");
    assert_eq!(of("format=RGB", "video/x-raw"), "sRGB");
    // RGB leaves the matrix to the size that comes out.
    assert_eq!(of("format=RGB", "video/x-raw,format=Y444"), "bt709");
    // What is unknown is filled in, as far as the colours of pixels depend on it.
    assert_eq!(of("format=I420,colorimetry=(string)1:0:0:0", "video/x-raw"), "1:4:0:0");
    assert_eq!(of("format=I420,colorimetry=(string)2:0:0:0", "video/x-raw"), "2:4:0:0");
    assert_eq!(of("format=RGB,colorimetry=(string)2:0:7:1", "video/x-raw"), "2:1:7:1");
    assert_eq!(of("format=I420,colorimetry=nonsense", "video/x-raw"), "bt601");
    // A caps filter has its way.
    let filter = "video/x-raw,colorimetry=(string)2:0:0:0,chroma-site=jpeg";
    assert_eq!(of("format=I420,colorimetry=bt709", filter), "2:0:0:0");
}

#[test]
fn the_chroma_site_is_said_where_it_matters() {
    let of = |input: &str, wanted: &str| {
        let fixed =
            negotiated(&format!("video/x-raw,width=426,height=240,framerate=15/1,{input}"), wanted);
        fixed.structure(0).unwrap().get::<String>("chroma-site").ok()
    };
    let is = |site: &str| Some(site.to_string());
    assert_eq!(of("format=I420,chroma-site=mpeg2", "video/x-raw,format=NV12"), is("mpeg2"));
    assert_eq!(of("format=I420,chroma-site=jpeg", "video/x-raw,format=NV12"), is("jpeg"));
    assert_eq!(of("format=I420,chroma-site=cosited", "video/x-raw"), is("cosited"));
    assert_eq!(of("format=I420", "video/x-raw"), is("mpeg2"));
    assert_eq!(of("format=I420,chroma-site=nonsense", "video/x-raw"), is("mpeg2"));
    assert_eq!(of("format=I420", "video/x-raw,chroma-site=jpeg"), is("jpeg"));
    assert_eq!(of("format=RGB", "video/x-raw,format=I420"), is("mpeg2"));
    assert_eq!(of("format=Y444", "video/x-raw,format=Y42B"), is("mpeg2"));
    assert_eq!(of("format=I420,chroma-site=jpeg", "video/x-raw,format=Y444"), None);
    assert_eq!(of("format=I420,chroma-site=jpeg", "video/x-raw,format=RGB"), None);
    assert_eq!(of("format=GRAY8", "video/x-raw"), None);
}

#[test]
fn what_caps_say_of_colours_holds() {
    let read = |more: &str| {
        let info = video_info(&caps(&format!("video/x-raw,framerate=25/1,{more}"))).unwrap();
        // Where chroma is not subsampled, the default of the site depends on GStreamer's version.
        let matters = colors::is_subsampled(&info.format_info());
        let site = matters.then(|| info.chroma_site());
        (info.colorimetry().to_string(), site.unwrap_or(gst_video::VideoChromaSite::empty()))
    };
    let (mpeg2, jpeg) = (gst_video::VideoChromaSite::MPEG2, gst_video::VideoChromaSite::JPEG);
    let none = gst_video::VideoChromaSite::empty();
    let (sd, hd) = ("width=720,height=576", "width=3840,height=2160");
    for (format, size, said, colorimetry, site) in [
        // The chroma site without a colorimetry, and with one that is unusable.
        ("I420", sd, ",chroma-site=mpeg2", "bt601", mpeg2),
        ("I420", sd, ",chroma-site=jpeg", "bt601", jpeg),
        ("I420", hd, ",chroma-site=jpeg", "bt709", jpeg),
        ("I420", hd, ",chroma-site=jpeg,colorimetry=nonsense", "bt709", jpeg),
        ("I420", sd, ",chroma-site=mpeg2,colorimetry=bt709", "bt709", mpeg2),
        ("Y42B", sd, ",chroma-site=none", "bt601", jpeg),
        // Neither.
        ("I420", sd, "", "bt601", mpeg2),
        ("NV12", hd, "", "bt709", mpeg2),
        ("I420", sd, ",chroma-site=nonsense", "bt601", mpeg2),
        ("I420", sd, ",chroma-site=none+h-cosited", "bt601", mpeg2),
        ("Y42B", sd, ",colorimetry=bt709", "bt709", mpeg2),
        ("I420", sd, ",colorimetry=(string)1:4:0:0", "1:4:0:0", jpeg),
        ("Y444", sd, "", "bt601", none),
        ("RGB", hd, "", "sRGB", none),
        // What is unknown of a colorimetry.
        ("I420", sd, ",colorimetry=(string)1:0:0:0,chroma-site=mpeg2", "1:4:0:0", mpeg2),
        ("I420", hd, ",colorimetry=(string)1:0:0:0", "1:3:0:0", jpeg),
        ("I420", hd, ",colorimetry=(string)2:0:0:0", "2:3:0:0", mpeg2),
        ("I420", sd, ",colorimetry=(string)1:0:5:1", "1:4:5:1", jpeg),
        ("I420", sd, ",colorimetry=(string)0:3:5:1", "bt709", mpeg2),
        ("I420", sd, ",colorimetry=(string)0:0:0:0", "2:4:0:0", mpeg2),
        ("I420", sd, ",colorimetry=(string)1:1:5:1", "1:4:5:1", jpeg),
        ("I420", sd, ",colorimetry=(string)9:99:0:0", "2:4:0:0", mpeg2),
        ("RGB", sd, ",colorimetry=(string)1:0:5:1", "1:1:5:1", none),
        ("RGB", sd, ",colorimetry=(string)2:3:5:1", "2:1:5:1", none),
        ("RGB", sd, ",colorimetry=(string)0:0:5:1,chroma-site=mpeg2", "1:1:5:1", none),
        ("GRAY8", sd, "", "1:4:0:0", none),
        ("GRAY8", sd, ",colorimetry=(string)2:1:0:0", "2:4:0:0", none),
        ("GRAY8", sd, ",colorimetry=(string)0:3:5:1", "1:3:5:1", none),
    ] {
        let found = read(&format!("format={format},{size}{said}"));
        assert_eq!(found, (colorimetry.to_string(), site), "{format} {size}{said}");
    }
}

#[test]
fn caps_that_describe_no_format_are_an_error() {
    for text in [
        "EMPTY",
        "ANY",
        "video/x-raw",
        "video/x-raw,format=I420",
        "video/x-raw,format=nothing,width=8,height=8",
        "video/x-raw,format=I420,width=[1,8],height=8",
        "video/x-raw,format=I420,width=2147483647,height=2147483647,chroma-site=mpeg2",
        "audio/x-raw",
    ] {
        assert!(video_info(&caps(text)).is_err(), "{text}");
    }
    // As GStreamer has it, these describe one.
    for text in ["video/x-h264", "image/png,width=8,height=8,colorimetry=(string)0:0:0:0"] {
        let encoded = caps(text);
        assert!(video_info(&encoded).is_ok(), "{text}");
        assert_eq!(colors::spelled_out(encoded.clone()), encoded);
    }
    let odd = caps("video/x-raw,format=I420,width=8,height=8,colorimetry=1.5,chroma-site=(int)7");
    assert_eq!(video_info(&odd).unwrap().colorimetry().to_string(), "bt601");
}

#[test]
fn the_other_way_gives_the_size_that_is_enlarged_to_it() {
    let output = caps("video/x-raw,format=I420,width=640,height=360,framerate=25/1");
    let fixed = fixate(&output, &transform(&output, Map::Down, Some(4)), Map::Down, 4);
    let s = fixed.structure(0).unwrap();
    assert_eq!((s.get::<i32>("width").unwrap(), s.get::<i32>("height").unwrap()), (160, 90));
}
