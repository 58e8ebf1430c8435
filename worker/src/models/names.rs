//! Makes the model that a name stands for.

use super::{Cnn, Mlp, Model};

/// Most values of one built-in model (16 GiB as f32).
const VALUES_MAX: usize = 1 << 32;
/// Most layers of one built-in model.
const LAYERS_MAX: usize = 64;

/// Why there is no such model.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ModelError {
    #[error("unknown model {name}; known are softmax, 2nn, cnn and mlp:IN-HIDDEN-...-OUT")]
    Unknown { name: String },
    #[error(
        "model {name}: {found:?} is not a size; mlp takes whole numbers from 1, as in mlp:784-300-100-10"
    )]
    Size { name: String, found: String },
    #[error("model {name} has {found} size; mlp takes at least features and classes, as in mlp:784-10")]
    TooFew { name: String, found: usize },
    #[error("model {name} has {found} layers; at most {LAYERS_MAX} are possible")]
    TooManyLayers { name: String, found: usize },
    #[error("model {name} has more than {VALUES_MAX} parameters")]
    TooLarge { name: String },
    #[error("cannot start {threads} compute threads: {source}")]
    Threads { threads: usize, source: rayon::ThreadPoolBuildError },
}

/// The model of this name: `softmax` (784-10), `2nn` (784-200-200-10), `cnn` (McMahan et al. 2017), or
/// `mlp:IN-HIDDEN-...-OUT` with sizes of your own, for example `mlp:784-300-100-10`.
///
/// # Errors
/// Says what is wrong with the name and what would be right.
pub fn by_name(name: &str) -> Result<Box<dyn Model>, ModelError> {
    match name {
        "softmax" => Ok(Box::new(Mlp::new(&[784, 10]))),
        "2nn" => Ok(Box::new(Mlp::new(&[784, 200, 200, 10]))),
        "cnn" => Ok(Box::new(Cnn::new())),
        _ => match name.strip_prefix("mlp:") {
            Some(sizes) => Ok(Box::new(Mlp::new(&checked_sizes(name, sizes)?))),
            None => Err(ModelError::Unknown { name: name.to_owned() }),
        },
    }
}

fn checked_sizes(name: &str, list: &str) -> Result<Vec<usize>, ModelError> {
    let mut sizes = Vec::new();
    for item in list.split('-') {
        // `parse` would accept a plus sign, and two names would then mean one model.
        let digits = !item.is_empty() && item.bytes().all(|b| b.is_ascii_digit());
        let size = item.parse().ok().filter(|&size| digits && (1..=VALUES_MAX).contains(&size));
        sizes.push(size.ok_or_else(|| ModelError::Size { name: name.to_owned(), found: item.to_owned() })?);
    }
    if sizes.len() < 2 {
        return Err(ModelError::TooFew { name: name.to_owned(), found: sizes.len() });
    }
    if sizes.len() - 1 > LAYERS_MAX {
        return Err(ModelError::TooManyLayers { name: name.to_owned(), found: sizes.len() - 1 });
    }
    let values = sizes.windows(2).try_fold(0_usize, |total, pair| {
        total.checked_add(pair[0].checked_mul(pair[1])?)?.checked_add(pair[1]).filter(|&t| t <= VALUES_MAX)
    });
    values.map(|_| sizes).ok_or_else(|| ModelError::TooLarge { name: name.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use windlass_common::layout::Layout;

    fn parameters(name: &str) -> u64 {
        Layout::new(by_name(name).unwrap().variables()).unwrap().total()
    }

    #[test]
    fn models_have_the_parameters_of_the_papers() {
        assert_eq!(parameters("softmax"), 7_850);
        assert_eq!(parameters("2nn"), 199_210);
        assert_eq!(parameters("cnn"), 1_663_370);
        assert_eq!(parameters("mlp:784-300-100-10"), 266_610);
        assert_eq!(parameters("mlp:1-1"), 2);
    }

    #[test]
    fn variables_have_speaking_names() {
        let names =
            |model| by_name(model).unwrap().variables().into_iter().map(|v| v.name).collect::<Vec<_>>();
        assert_eq!(names("softmax"), ["dense1/weight", "dense1/bias"]);
        assert_eq!(names("2nn")[2..4], ["dense2/weight", "dense2/bias"]);
        assert_eq!(names("cnn")[..3], ["conv1/weight", "conv1/bias", "conv2/weight"]);
    }

    #[test]
    fn wrong_names_are_answered_with_what_is_possible() {
        let error = |name: &str| by_name(name).unwrap_err().to_string();
        assert_eq!(
            error("resnet"),
            "unknown model resnet; known are softmax, 2nn, cnn and mlp:IN-HIDDEN-...-OUT"
        );
        assert!(error("").contains("known are"));
        assert!(error("mlp:").contains("\"\" is not a size"));
        assert!(error("mlp:784").contains("at least features and classes"));
        assert!(error("mlp:784-0-10").contains("\"0\" is not a size"));
        assert!(error("mlp:784--10").contains("\"\" is not a size"));
        assert!(error("mlp:784-+3-10").contains("\"+3\" is not a size"));
        assert!(error("mlp:784-ten").contains("\"ten\""));
        assert!(error("mlp:99999999999999999999999-10").contains("is not a size"));
        assert!(error("mlp:4000000000-4000000000").contains("more than 4294967296 parameters"));
        assert!(error("mlp:4000000000-4000000000-4000000000").contains("more than"));
        assert!(error(&format!("mlp:1{}", "-1".repeat(65))).contains("65 layers"));
    }
}
