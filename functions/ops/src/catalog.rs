//! Which operations there are: one line each.
use crate::compose::watermark::Watermark;
use crate::error::{OpError, nearest};
use crate::filter::{adjust::Adjust, blur::Blur, grayscale::Grayscale, sharpen::Sharpen};
use crate::geometry::{autorotate::Autorotate, crop::Crop, flip::Flip, resize::Resize, rotate::Rotate};
use crate::operation::Operation;
use crate::output::{convert::Convert, noop::Noop};

static CATALOG: [Operation; 12] = [
    Operation::of::<Autorotate>(),
    Operation::of::<Resize>(),
    Operation::of::<Crop>(),
    Operation::of::<Rotate>(),
    Operation::of::<Flip>(),
    Operation::of::<Blur>(),
    Operation::of::<Sharpen>(),
    Operation::of::<Grayscale>(),
    Operation::of::<Adjust>(),
    Operation::of::<Watermark>(),
    Operation::of::<Convert>(),
    Operation::of::<Noop>(),
];

/// Every operation, the [hidden](Operation::hidden) ones too.
#[must_use]
pub fn catalog() -> &'static [Operation] {
    &CATALOG
}

/// The operation `name`.
///
/// # Errors
/// [`OpError::UnknownOperation`] with the nearest name.
pub fn find(name: &str) -> Result<&'static Operation, OpError> {
    let found = CATALOG.iter().find(|operation| operation.name == name);
    found.ok_or_else(|| OpError::UnknownOperation {
        name: name.to_owned(),
        nearest: nearest(name, CATALOG.iter().filter(|o| !o.hidden).map(|o| o.name)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_a_wrong_one_gets_the_nearest() {
        let names: std::collections::BTreeSet<_> = catalog().iter().map(|o| o.name).collect();
        assert_eq!(names.len(), catalog().len());
        for name in names {
            assert_eq!(find(name).unwrap().name, name);
        }
        let error = find("rotat").unwrap_err().to_string();
        assert!(error.contains("rotat") && error.contains("\"rotate\""), "{error}");
    }
}
