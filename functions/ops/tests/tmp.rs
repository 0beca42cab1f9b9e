#[test]
fn show() {
    for o in ["resize", "autorotate", "crop", "watermark"] {
        println!(
            "{}",
            serde_json::to_string_pretty(&imageflow_ops::find(o).unwrap().schema()).unwrap()
        );
    }
    println!(
        "{}",
        imageflow_ops::find("resize")
            .unwrap()
            .prepare(&serde_json::json!({"width":9,"fit":"covr"}))
            .unwrap_err()
    );
    // rough speed
    let mut png = Vec::new();
    {
        let mut e = png::Encoder::new(&mut png, 2725, 2225);
        e.set_color(png::ColorType::Rgb);
        let px: Vec<u8> = (0..2725u32 * 2225)
            .flat_map(|i| {
                let (x, y) = (i % 2725, i / 2725);
                [(x / 11) as u8 ^ (y & 7) as u8, (y / 9) as u8, ((x * y) >> 14) as u8]
            })
            .collect();
        e.write_header().unwrap().write_image_data(&px).unwrap();
    }
    let st = |o: &str, p| imageflow_ops::StepSpec {
        name: o.into(),
        operation: o.into(),
        params: p,
    };
    let go = |i: &[u8], s: &[imageflow_ops::StepSpec]| {
        imageflow_ops::run(
            i,
            s,
            &Default::default(),
            &Default::default(),
            imageflow_ops::Encode::Final,
        )
        .unwrap()
        .bytes
    };
    let jpg = go(&png, &[st("convert", serde_json::json!({"format":"jpeg"}))]);
    println!("jpg {}", jpg.len());
    for (n, i, s) in [
        ("jpg256", &jpg, vec![st("resize", serde_json::json!({"width":256}))]),
        ("jpg512", &jpg, vec![st("resize", serde_json::json!({"width":512}))]),
        ("png512", &png, vec![st("resize", serde_json::json!({"width":512}))]),
        ("blur3", &jpg, vec![st("blur", serde_json::json!({"sigma":3}))]),
        ("blur7.9", &jpg, vec![st("blur", serde_json::json!({"sigma":7.9}))]),
        ("blur200", &jpg, vec![st("blur", serde_json::json!({"sigma":200}))]),
        ("reenc", &jpg, vec![]),
        ("rot10", &jpg, vec![st("rotate", serde_json::json!({"angle":10}))]),
        ("sharpen", &jpg, vec![st("sharpen", serde_json::json!({}))]),
        (
            "adjust",
            &jpg,
            vec![st("adjust", serde_json::json!({"saturation":1.2}))],
        ),
        ("noop", &jpg, vec![st("noop", serde_json::json!({}))]),
    ] {
        let t = std::time::Instant::now();
        let mut b = f64::MAX;
        for _ in 0..4 {
            let t = std::time::Instant::now();
            go(i, &s);
            b = b.min(t.elapsed().as_secs_f64() * 1e3);
        }
        println!("{n} {b:.1} ms");
        let _ = t;
    }
}
