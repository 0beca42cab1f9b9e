use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::testing::{
    apply, asymmetric, decoded, flat, golden, photo, psnr, refusal, run_final, translucent, with_orientation,
};
use crate::{OpErrorKind, find};

fn resized(params: Value, full: Size) -> Size {
    let made = apply("resize", params, flat(full, [1, 2, 3]));
    made.size()
}

#[test]
fn each_fit_gives_the_size_it_says() {
    let full = Size::new(400, 200);
    let table = [
        (json!({"width": 100}), (100, 50)),
        (json!({"height": 100}), (200, 100)),
        (json!({"width": 100, "height": 100}), (100, 100)),
        (json!({"width": 100, "height": 100, "fit": "cover"}), (100, 100)),
        (json!({"width": 100, "height": 100, "fit": "contain"}), (100, 100)),
        (json!({"width": 100, "height": 100, "fit": "fill"}), (100, 100)),
        (json!({"width": 100, "height": 100, "fit": "inside"}), (100, 50)),
        (json!({"width": 100, "height": 100, "fit": "outside"}), (200, 100)),
        (json!({"width": 800}), (400, 200)),
        (json!({"width": 800, "withoutEnlargement": false}), (800, 400)),
        (json!({"width": 300, "height": 300}), (300, 200)),
        (
            json!({"width": 300, "height": 300, "withoutEnlargement": false}),
            (300, 300),
        ),
        (json!({"width": 800, "height": 100, "fit": "fill"}), (400, 100)),
        (json!({"width": 800, "height": 800, "fit": "contain"}), (800, 800)),
        (json!({"width": 1}), (1, 1)),
    ];
    for (params, (width, height)) in table {
        assert_eq!(resized(params.clone(), full), Size::new(width, height), "{params}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_plan_stays_in_the_picture_and_in_the_box(
        full in (1..3000_u32, 1..3000_u32),
        target in (1..3000_u32, 1..3000_u32),
        fit in prop::sample::select(vec![Fit::Cover, Fit::Contain, Fit::Fill, Fit::Inside, Fit::Outside]),
        gravity in prop::sample::select(vec![Gravity::Center, Gravity::North, Gravity::Southeast]),
        keep in any::<bool>(),
    ) {
        let full = Size::new(full.0, full.1);
        let resize = Resize {
            width: Some(target.0),
            height: Some(target.1),
            fit,
            gravity,
            without_enlargement: NotSmaller(keep),
            ..Resize::default()
        };
        let Plan { from, to, canvas } = resize.plan(full);
        let slack = 1e-6;
        prop_assert!(from.x >= -slack && from.x + from.width <= f64::from(full.width) + slack);
        prop_assert!(from.y >= -slack && from.y + from.height <= f64::from(full.height) + slack);
        prop_assert!(to.width >= 1 && to.height >= 1 && to.width <= canvas.width && to.height <= canvas.height);
        if keep {
            prop_assert!(to.width <= full.width && to.height <= full.height);
        }
        if fit != Fit::Outside {
            prop_assert!(canvas.width <= target.0 && canvas.height <= target.1);
        }
        let exact = matches!(fit, Fit::Contain) || (!keep && matches!(fit, Fit::Cover | Fit::Fill));
        if exact {
            prop_assert_eq!(canvas, Size::new(target.0, target.1));
        }
        if !keep && fit == Fit::Inside {
            prop_assert!(to.width == target.0 || to.height == target.1);
        }
        if fit != Fit::Fill {
            // Nothing is stretched by more than the rounding of the sides.
            let (sx, sy) = (f64::from(to.width) / from.width, f64::from(to.height) / from.height);
            let rounding = 1.0 / from.width.min(from.height) + slack;
            prop_assert!((sx - sy).abs() <= rounding, "{} {}", sx, sy);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_size_can_be_made_of_every_size(
        (width, height) in (1..90_u32, 1..90_u32),
        (to_width, to_height) in (1..90_u32, 1..90_u32),
        fit in prop::sample::select(vec!["cover", "contain", "fill", "inside", "outside"]),
        gravity in prop::sample::select(vec!["center", "east", "southwest"]),
        kernel in prop::sample::select(vec!["lanczos3", "nearest", "bilinear"]),
        orientation in 1..=8_u8,
        keep in any::<bool>(),
    ) {
        let mut params = json!({
            "width": to_width, "height": to_height, "fit": fit, "kernel": kernel, "withoutEnlargement": keep,
        });
        if ["cover", "contain"].contains(&fit) {
            params["gravity"] = gravity.into();
        }
        let full = crate::orientation::Orientation::from_exif(orientation).size(Size::new(width, height));
        let plan = find("resize").unwrap().prepare(&params).map(|_| serde_json::from_value::<Resize>(params.clone()).unwrap().plan(full));
        let jpeg = with_orientation(&flat(Size::new(width, height), [40, 90, 160]).encoded(Format::Jpeg), orientation);
        let output = run_final(&jpeg, &[("resize", params), ("convert", json!({"format": "png"}))]);
        let made = decoded(&output.bytes);
        prop_assert_eq!(made.size, plan.unwrap().canvas);
        // Nothing but the picture and, beside it, white.
        let alike = |pixel: &[u8]| pixel.iter().zip([40, 90, 160]).all(|(a, b)| a.abs_diff(b) < 8);
        prop_assert!(made.pixels.chunks(3).all(|p| alike(p) || (fit == "contain" && p == [255; 3])));
    }
}

#[test]
fn cover_keeps_the_part_that_gravity_says() {
    // Left red, right blue.
    let mut picture = flat(Size::new(80, 40), [255, 0, 0]);
    picture
        .pixels
        .chunks_mut(80 * 3)
        .for_each(|row| row[40 * 3..].as_chunks_mut::<3>().0.fill([0, 0, 255]));
    let color = |gravity: &str| {
        let out = apply(
            "resize",
            json!({"width": 10, "height": 20, "gravity": gravity}),
            picture.clone(),
        );
        out.pixels[..3].to_vec()
    };
    assert_eq!(color("west"), [255, 0, 0]);
    assert_eq!(color("southeast"), [0, 0, 255]);
}

#[test]
fn cover_without_scaling_cuts_whole_pixels() {
    let picture = asymmetric(41, 31);
    let out = apply("resize", json!({"width": 20, "height": 99}), picture.clone());
    assert_eq!(out, picture.cut(10, 0, Size::new(20, 31)));
}

#[test]
fn contain_pads_with_the_background_and_puts_the_picture_where_gravity_says() {
    let corner = |params: Value, picture: Picture| {
        let mut params = params;
        (params["width"], params["height"], params["fit"]) = (20.into(), 20.into(), "contain".into());
        apply("resize", params, picture)
    };
    let wide = || flat(Size::new(40, 20), [9, 9, 9]);
    let top = corner(json!({}), wide());
    assert_eq!((top.layout, &top.pixels[..3]), (Layout::Rgb, &[255; 3][..]));
    let top = corner(json!({"gravity": "north"}), wide());
    assert_eq!(top.pixels[..3], [9, 9, 9]);
    let top = corner(json!({"background": "#01020380"}), wide());
    assert_eq!(top.pixels[..4], [1, 2, 3, 128]);
    let top = corner(json!({}), translucent(40, 20));
    assert_eq!(top.pixels[3], 0);
}

#[test]
fn each_kernel_is_its_own() {
    let picture = asymmetric(96, 64);
    let mut seen: Vec<Picture> = Vec::new();
    for kernel in ["lanczos3", "catmullRom", "bilinear", "nearest", "mitchell"] {
        let out = apply("resize", json!({"width": 48, "kernel": kernel}), picture.clone());
        assert!(!seen.contains(&out), "{kernel}");
        golden(&format!("resize-{kernel}"), &out, Some(45.0));
        seen.push(out);
    }
}

#[test]
fn hidden_colours_do_not_bleed_and_alpha_is_kept() {
    let out = apply("resize", json!({"width": 10}), translucent(40, 8));
    assert_eq!(
        (out.layout, out.pixels[3], out.pixels[9 * 4 + 3]),
        (Layout::Rgba, 255, 0)
    );
    for pixel in out.pixels.chunks(4).filter(|p| p[3] > 16) {
        assert!(pixel[0] > 235 && pixel[1] < 20, "{pixel:?}");
    }
}

#[test]
fn the_same_size_is_the_same_picture() {
    let picture = photo(33, 21);
    assert_eq!(apply("resize", json!({"width": 33}), picture.clone()), picture);
    assert_eq!(
        apply(
            "resize",
            json!({"width": 33, "height": 21, "fit": "fill"}),
            picture.clone()
        ),
        picture
    );
}

#[test]
fn shrinking_on_load_does_not_show() {
    let mut worst = f64::INFINITY;
    // Odd sides: the last blocks are covered in part only, which shifts everything if it is forgotten.
    for (width, height) in [(1023, 777), (1001, 601)] {
        let jpeg = photo(width, height).encoded(Format::Jpeg);
        let whole = decoded(&jpeg);
        for target in [40, 90, 180, 380] {
            for (orientation, fit, gravity) in [
                (1, "inside", "center"),
                (6, "cover", "northwest"),
                (3, "cover", "northwest"),
                (7, "inside", "center"),
            ] {
                let params = json!({"width": target, "height": target, "fit": fit, "gravity": gravity});
                let jpeg = with_orientation(&jpeg, orientation);
                let upright = crate::orientation::Orientation::from_exif(orientation).apply(whole.clone());
                let expected = apply("resize", params.clone(), upright);
                let mut with_format = params;
                with_format["format"] = "png".into();
                let got = run_final(&jpeg, &[("resize", with_format)]).bytes;
                worst = worst.min(psnr(&decoded(&got), &expected));
            }
        }
    }
    assert!(worst > 48.0, "{worst} dB");
}

#[test]
fn a_thumbnail_is_decoded_at_a_fraction() {
    let step = |params: Value| find("resize").unwrap().prepare(&params).unwrap();
    let full = Size::new(4000, 3000);
    assert_eq!(step(json!({"width": 400})).shrinks(full), Some(10.0));
    let cover = step(json!({"width": 300, "height": 300})).shrinks(full).unwrap();
    assert!((cover - 10.0).abs() < 1e-9);
    assert_eq!(step(json!({"width": 400, "kernel": "nearest"})).shrinks(full), None);
}

#[test]
fn format_and_quality_ride_along() {
    let input = photo(64, 64).encoded(Format::Png);
    let output = run_final(
        &input,
        &[("resize", json!({"width": 32, "format": "webp", "quality": 60}))],
    );
    assert_eq!((output.format, output.width), (Format::Webp, 32));
    let (_, message) = refusal(
        "resize",
        json!({"width": 9, "format": "png", "quality": 60}),
        photo(2, 2),
    );
    assert!(message.contains("resize.quality = 60"), "{message}");
}

#[test]
fn a_quality_ends_lossless_and_a_png_ends_a_quality() {
    let input = photo(64, 64).encoded(Format::Png);
    let lossless = || ("convert", json!({"format": "webp", "lossless": true}));
    let made = |steps: &[(&str, Value)]| run_final(&input, steps).bytes;
    let lossy = made(&[lossless(), ("resize", json!({"width": 32, "quality": 50}))]);
    assert_eq!(
        lossy,
        made(&[("resize", json!({"width": 32, "format": "webp", "quality": 50}))])
    );
    assert_ne!(lossy, made(&[lossless(), ("resize", json!({"width": 32}))]));
    let png = made(&[
        ("convert", json!({"format": "jpeg", "quality": 50})),
        ("resize", json!({"width": 32, "format": "png"})),
    ]);
    assert_eq!(Format::sniff(&png), Some(Format::Png));
}

#[test]
fn what_the_fit_would_ignore_is_refused() {
    for (params, part) in [
        (
            json!({"width": 9, "fit": "contain", "background": "#ff0000"}),
            "resize.fit = \"contain\": give width and height",
        ),
        (json!({"height": 9, "fit": "fill"}), "resize.fit = \"fill\""),
        (
            json!({"width": 9, "height": 9, "background": "black"}),
            "resize.background = \"#000000\": only with fit contain",
        ),
        (
            json!({"width": 9, "height": 9, "fit": "inside", "gravity": "north"}),
            "resize.gravity = \"north\"",
        ),
        (json!({"width": 9, "gravity": "north"}), "resize.gravity = \"north\""),
    ] {
        let (kind, message) = refusal("resize", params, photo(4, 4));
        assert!(message.contains(part), "{message}");
        assert_eq!(kind, OpErrorKind::BadParameter);
    }
    // With one side alone these say what happens anyway.
    for fit in ["cover", "inside", "outside"] {
        assert_eq!(
            resized(json!({"width": 9, "fit": fit}), Size::new(18, 6)),
            Size::new(9, 3)
        );
    }
}

#[test]
fn a_result_over_the_limits_is_refused_before_it_is_made() {
    let line = flat(Size::new(1, 3000), [0, 0, 0]);
    let params = json!({"width": 16384, "withoutEnlargement": false});
    let (kind, message) = refusal("resize", params, line);
    assert_eq!(kind, OpErrorKind::TooLarge);
    assert!(message.contains("16384 x 49152000"), "{message}");
    let square = json!({"width": 16384, "height": 16384, "fit": "contain"});
    assert_eq!(refusal("resize", square, photo(4, 4)).0, OpErrorKind::TooLarge);
}

#[test]
fn enlarging_is_smooth() {
    let small = photo(60, 45);
    let out = apply("resize", json!({"width": 120, "withoutEnlargement": false}), small);
    assert!(psnr(&out, &photo(120, 90)) > 25.0);
}
