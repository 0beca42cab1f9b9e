//! Steps in one call and steps one by one give the same bytes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]
use imageflow_ops::{Assets, Encode, Format, Limits, Output, StepSpec, probe, run, run_observed};
use serde_json::{Value, json};

fn picture(width: u32, height: u32, alpha: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, width, height);
    encoder.set_color(if alpha {
        png::ColorType::Rgba
    } else {
        png::ColorType::Rgb
    });
    let places = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    let pixels: Vec<u8> = places
        .flat_map(|(x, y)| {
            let pixel = [
                (x * 3 % 256) as u8,
                (y * 5 % 256) as u8,
                ((x * y) / 7 % 256) as u8,
                ((x + y) * 2 % 256) as u8,
            ];
            pixel.into_iter().take(if alpha { 4 } else { 3 })
        })
        .collect();
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&pixels).unwrap();
    writer.finish().unwrap();
    out
}

fn jpeg(width: u32, height: u32, orientation: u8) -> Vec<u8> {
    let steps = [step(0, ("convert", json!({"format": "jpeg", "quality": 95})))];
    let jpeg = run(
        &picture(width, height, false),
        &steps,
        &Assets::default(),
        &Limits::default(),
        Encode::Final,
    )
    .unwrap()
    .bytes;
    let mut exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\0\0\0\0\0\0\0".to_vec();
    exif[25] = orientation;
    let head = [0xff, 0xe1, 0, exif.len() as u8 + 2];
    [&jpeg[..2], &head, &exif, &jpeg[2..]].concat()
}

fn step(number: usize, (operation, params): (&str, Value)) -> StepSpec {
    StepSpec {
        name: format!("s{number}"),
        operation: operation.to_owned(),
        params,
    }
}

fn go(input: &[u8], steps: &[StepSpec], mode: Encode) -> Output {
    let mut assets = Assets::default();
    assets.insert("logo", picture(20, 12, true));
    run(input, steps, &assets, &Limits::default(), mode).unwrap()
}

/// The last step's own bytes, and those of all steps but the last as an intermediate.
fn one_by_one(input: &[u8], steps: &[StepSpec]) -> (Output, Vec<Output>) {
    let (last, before) = steps.split_last().unwrap();
    let mut between: Vec<Output> = Vec::new();
    for step in before {
        let input = between.last().map_or(input, |o| &o.bytes);
        between.push(go(input, std::slice::from_ref(step), Encode::Intermediate));
    }
    let input = between.last().map_or(input, |o| &o.bytes);
    (go(input, std::slice::from_ref(last), Encode::Final), between)
}

fn chains() -> Vec<Vec<(&'static str, Value)>> {
    let small = || ("resize", json!({"width": 60, "height": 60}));
    vec![
        vec![
            ("autorotate", json!({})),
            small(),
            ("sharpen", json!({})),
            ("convert", json!({"format": "webp", "quality": 70})),
        ],
        vec![small(), ("blur", json!({"sigma": 3}))],
        vec![small(), ("blur", json!({"sigma": 20}))],
        vec![
            ("crop", json!({"width": 150, "height": 90, "gravity": "north"})),
            ("rotate", json!({"angle": 20})),
            ("watermark", json!({"image": "logo", "opacity": 0.5})),
        ],
        vec![("convert", json!({"format": "png"})), small()],
        vec![
            (
                "convert",
                json!({"format": "jpeg", "quality": 40, "background": "black"}),
            ),
            small(),
            ("flip", json!({})),
        ],
        vec![("autorotate", json!({})), ("noop", json!({}))],
        vec![
            ("noop", json!({})),
            ("autorotate", json!({})),
            ("grayscale", json!({})),
            ("noop", json!({})),
        ],
        vec![("noop", json!({})), ("noop", json!({})), small()],
        vec![
            ("resize", json!({"width": 50, "format": "webp", "quality": 30})),
            ("adjust", json!({"brightness": 1.2})),
            ("noop", json!({})),
        ],
        vec![
            small(),
            ("convert", json!({"format": "jpeg"})),
            ("autorotate", json!({})),
        ],
        vec![
            ("rotate", json!({"angle": 90})),
            small(),
            ("resize", json!({"height": 20})),
        ],
        vec![
            ("resize", json!({"width": 80, "kernel": "nearest"})),
            ("convert", json!({"format": "webp", "lossless": true})),
        ],
        vec![
            (
                "resize",
                json!({"width": 80, "height": 90, "fit": "contain", "background": "#ff000080"}),
            ),
            ("rotate", json!({"angle": 7})),
        ],
    ]
}

#[test]
fn fused_and_one_by_one_are_the_same_bytes_and_pixels() {
    let webp = [step(0, ("convert", json!({"format": "webp"})))];
    let alpha = picture(301, 203, true);
    let inputs = [
        ("jpeg", jpeg(301, 203, 1)),
        ("jpeg on its side", jpeg(301, 203, 6)),
        ("jpeg mirrored", jpeg(301, 203, 5)),
        ("png", picture(301, 203, false)),
        ("png with alpha", alpha.clone()),
        ("webp with alpha", go(&alpha, &webp, Encode::Final).bytes),
    ];
    for (number, chain) in chains().into_iter().enumerate() {
        let steps: Vec<_> = chain.into_iter().enumerate().map(|(n, s)| step(n, s)).collect();
        for (name, input) in &inputs {
            let fused = go(input, &steps, Encode::Final);
            let (last, between) = one_by_one(input, &steps);
            let where_ = format!("chain {number} on {name}");
            assert_eq!(fused.format, last.format, "{where_}");
            assert_eq!((fused.width, fused.height), (last.width, last.height), "{where_}");
            assert!(fused.bytes == last.bytes, "{where_}: the bytes differ");
            // The state too: what stands before the last encoding is one and the same file.
            let before = go(input, &steps[..steps.len() - 1], Encode::Intermediate);
            assert_eq!(before.format, between.last().unwrap().format, "{where_}");
            if before.format == Format::Png {
                assert!(
                    before.bytes == between.last().unwrap().bytes,
                    "{where_}: the intermediates differ"
                );
            }
            let sizes: Vec<_> = fused
                .steps
                .iter()
                .map(|s| (s.name.clone(), s.width, s.height))
                .collect();
            let single = between.iter().chain([&last]).flat_map(|o| &o.steps);
            let single: Vec<_> = single.map(|s| (s.name.clone(), s.width, s.height)).collect();
            assert_eq!(sizes, single, "{where_}");
        }
    }
}

#[test]
fn an_intermediate_is_lossless_and_remembers_the_first_format() {
    let input = jpeg(64, 48, 6);
    let resized = go(
        &input,
        &[step(0, ("resize", json!({"width": 20})))],
        Encode::Intermediate,
    );
    assert_eq!(resized.format, Format::Png);
    let info = probe(&resized.bytes, &Limits::default()).unwrap();
    assert_eq!((info.width, info.height, info.orientation), (20, 27, 1));
    let last = go(&resized.bytes, &[step(1, ("autorotate", json!({})))], Encode::Final);
    assert_eq!(last.format, Format::Jpeg);
    assert_eq!(
        last.data,
        json!({"width": 20, "height": 27, "format": "jpeg", "orientation": 6})
    );

    let upright = go(&input, &[step(0, ("autorotate", json!({})))], Encode::Intermediate);
    assert_eq!((upright.format, upright.width, upright.height), (Format::Jpeg, 48, 64));
}

#[test]
fn what_a_later_step_shrinks_may_be_wider_than_a_result() {
    let panorama = picture(17_000, 20, false);
    let flip = || step(0, ("flip", json!({})));
    let steps = [flip(), step(1, ("resize", json!({"width": 800})))];
    let fused = go(&panorama, &steps, Encode::Final);
    let (last, _) = one_by_one(&panorama, &steps);
    assert_eq!((fused.width, fused.height), (800, 1));
    assert!(fused.bytes == last.bytes);
    let wide = run(
        &panorama,
        &[flip()],
        &Assets::default(),
        &Limits::default(),
        Encode::Final,
    );
    assert_eq!(wide.unwrap_err().kind(), imageflow_ops::OpErrorKind::TooLarge);
}

#[test]
fn a_fault_names_the_step_and_keeps_its_kind() {
    let error = run(
        &picture(8, 8, false),
        &[
            step(0, ("flip", json!({}))),
            step(1, ("crop", json!({"x": 7, "y": 0, "width": 4, "height": 4}))),
        ],
        &Assets::default(),
        &Limits::default(),
        Encode::Final,
    )
    .unwrap_err();
    assert_eq!(error.kind(), imageflow_ops::OpErrorKind::BadParameter);
    assert!(error.to_string().starts_with("step \"s1\": crop.x = 7"), "{error}");
}

#[test]
fn the_observer_sees_each_step_once_in_order() {
    let chain = [
        ("autorotate", json!({})),
        ("resize", json!({"width": 20})),
        ("blur", json!({})),
        ("convert", json!({})),
    ];
    let steps: Vec<StepSpec> = chain.into_iter().enumerate().map(|(n, s)| step(n, s)).collect();
    for input in [jpeg(90, 60, 6), picture(90, 60, true)] {
        for mode in [Encode::Final, Encode::Intermediate] {
            for count in 1..=steps.len() {
                let mut seen = Vec::new();
                run_observed(
                    &input,
                    &steps[..count],
                    &Assets::default(),
                    &Limits::default(),
                    mode,
                    &mut |i| seen.push(i),
                )
                .unwrap();
                assert_eq!(seen, (0..count).collect::<Vec<_>>());
            }
        }
    }
}
