//! Reads an optimizer from the text of a flag, and says what is wrong with one.

use std::fmt;
use std::str::FromStr;

use super::Optimizer;

/// Why a text or a set of hyper-parameters is not an optimizer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs)]
pub enum OptimizerError {
    #[error("there is no optimizer {name:?}; there are {}", names())]
    Unknown { name: String },
    #[error("optimizer {optimizer} has no {setting:?}; it has {known}")]
    Setting { optimizer: &'static str, setting: String, known: String },
    #[error("optimizer {optimizer} is given {setting} twice; once is enough")]
    Twice { optimizer: &'static str, setting: &'static str },
    #[error(
        "optimizer {optimizer} is given {text:?}; write a setting and a number, such as weight_decay=0.01"
    )]
    Malformed { optimizer: &'static str, text: String },
    #[error("optimizer {optimizer} has {setting} {found:?}; it must lie between {least:?} and {most:?}")]
    Range { optimizer: &'static str, setting: &'static str, found: f64, least: f64, most: f64 },
}

fn names() -> String {
    Optimizer::all().map(|optimizer| optimizer.name()).join(", ")
}

impl Optimizer {
    /// Whether every hyper-parameter is in its range.
    ///
    /// # Errors
    /// Names the first that is not, with what was found and what would be right.
    pub fn check(&self) -> Result<(), OptimizerError> {
        let optimizer = self.name();
        let mut copy = *self;
        for setting in copy.settings() {
            if !setting.range.contains(setting.value) {
                let (least, most) = setting.range.into_inner();
                let (setting, found) = (setting.name, *setting.value);
                return Err(OptimizerError::Range { optimizer, setting, found, least, most });
            }
        }
        Ok(())
    }
}

impl FromStr for Optimizer {
    type Err = OptimizerError;

    /// Reads `adam` or `adam:beta1=0.9,epsilon=1e-8`. What is not given has its default; ranges are checked.
    fn from_str(text: &str) -> Result<Self, OptimizerError> {
        let (name, given) = match text.split_once(':') {
            Some((name, given)) => (name.trim(), Some(given)),
            None => (text.trim(), None),
        };
        let mut optimizer = Self::all()
            .into_iter()
            .find(|known| known.name() == name)
            .ok_or_else(|| OptimizerError::Unknown { name: name.to_owned() })?;
        if let Some(given) = given {
            set(&mut optimizer, given)?;
        }
        optimizer.check()?;
        Ok(optimizer)
    }
}

fn set(optimizer: &mut Optimizer, given: &str) -> Result<(), OptimizerError> {
    let name = optimizer.name();
    let mut settings = optimizer.settings();
    let mut seen = Vec::new();
    for text in given.split(',') {
        let malformed = || OptimizerError::Malformed { optimizer: name, text: text.trim().to_owned() };
        let (key, number) = text.split_once('=').ok_or_else(malformed)?;
        let (key, number) = (key.trim(), number.trim());
        let Some(at) = settings.iter().position(|setting| setting.name == key) else {
            let known: Vec<_> = settings.iter().map(|setting| setting.name).collect();
            let (setting, known) = (key.to_owned(), known.join(", "));
            return Err(OptimizerError::Setting { optimizer: name, setting, known });
        };
        let setting = &mut settings[at];
        if seen.contains(&at) {
            return Err(OptimizerError::Twice { optimizer: name, setting: setting.name });
        }
        seen.push(at);
        *setting.value = number.parse().map_err(|_| malformed())?;
    }
    Ok(())
}

impl fmt::Display for Optimizer {
    /// Writes every hyper-parameter, in the form that [`FromStr`] reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        let mut separator = ':';
        let mut copy = *self;
        for setting in copy.settings() {
            write!(f, "{separator}{}={:?}", setting.name, setting.value)?;
            separator = ',';
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Adam, Adamw, FedYogi, Sgd};
    use super::*;

    #[test]
    fn flags_are_read_and_written() {
        let adam = Adam { beta1: 0.5, epsilon: 1e-6, ..Adam::default() };
        assert_eq!("adam:beta1=0.5, epsilon=1e-6".parse(), Ok(Optimizer::Adam(adam)));
        assert_eq!("sgd".parse(), Ok(Optimizer::Sgd(Sgd::default())));
        let yogi = FedYogi { tau: 0.01, ..FedYogi::default() };
        assert_eq!("fedyogi:tau=0.01".parse(), Ok(Optimizer::FedYogi(yogi)));
        assert_eq!(Optimizer::FedYogi(yogi).to_string(), "fedyogi:beta1=0.9,beta2=0.99,tau=0.01");
        assert_eq!(
            Optimizer::Adam(adam).to_string(),
            "adam:beta1=0.5,beta2=0.999,epsilon=1e-6,weight_decay=0.0"
        );
        for optimizer in Optimizer::all() {
            assert_eq!(optimizer.to_string().parse(), Ok(optimizer));
        }
    }

    #[test]
    fn files_are_read_and_written() {
        let read = |text: &str| toml::from_str::<Optimizer>(text);
        let adam = Adam { beta1: 0.5, weight_decay: 1.0, ..Adam::default() };
        assert_eq!(read("name = \"adam\"\nbeta1 = 0.5\nweight_decay = 1"), Ok(Optimizer::Adam(adam)));
        assert_eq!(read("name = \"adamw\""), Ok(Optimizer::Adamw(Adamw::default())));
        for mut optimizer in Optimizer::all() {
            let written = toml::to_string(&optimizer).unwrap();
            assert_eq!(read(&written), Ok(optimizer), "{written}");
            for setting in optimizer.settings() {
                assert!(written.contains(&format!("{} = ", setting.name)), "{written}");
            }
        }
    }

    #[test]
    fn a_flag_that_cannot_be_meant_gets_a_sentence() {
        let error = |text: &str| text.parse::<Optimizer>().unwrap_err().to_string();
        assert_eq!(
            error("adm"),
            "there is no optimizer \"adm\"; there are sgd, momentum, nesterov, adagrad, rmsprop, adam, adamw, \
             fedadagrad, fedadam, fedyogi"
        );
        assert!(error("").starts_with("there is no optimizer \"\""));
        assert!(error("Adam").starts_with("there is no optimizer \"Adam\""));
        assert_eq!(
            error("adam:beta3=0.1"),
            "optimizer adam has no \"beta3\"; it has beta1, beta2, epsilon, weight_decay"
        );
        assert_eq!(error("momentum:mu=0.9,mu=0.8"), "optimizer momentum is given mu twice; once is enough");
        assert_eq!(error("fedadagrad:beta2=0.9"), "optimizer fedadagrad has no \"beta2\"; it has beta1, tau");
        assert!(error("fedadam:weight_decay=0.1").contains("it has beta1, beta2, tau"));
        for text in
            ["sgd:", "sgd:weight_decay", "sgd:weight_decay=", "sgd:weight_decay=x", "sgd:weight_decay=0,"]
        {
            assert!(error(text).contains("write a setting and a number"), "{text}: {}", error(text));
        }
        assert_eq!(
            error("adam:beta1=1"),
            "optimizer adam has beta1 1.0; it must lie between 0.0 and 0.999999"
        );
    }

    #[test]
    fn a_file_that_cannot_be_meant_gets_a_sentence() {
        let error = |text: &str| toml::from_str::<Optimizer>(text).unwrap_err().to_string();
        let unknown = error("name = \"adm\"");
        assert!(
            unknown.contains("adm") && Optimizer::all().iter().all(|o| unknown.contains(o.name())),
            "{unknown}"
        );
        assert!(error("beta1 = 0.9").contains("name"));
        assert!(error("name = \"sgd\"\nbeta1 = 0.9").contains("beta1"));
        assert!(error("name = \"adam\"\nbeta1 = \"much\"").contains("much"));
        assert!(error("name = \"adam\"\nbeta1 = 0.9\nbeta1 = 0.8").contains("beta1"));
    }

    #[test]
    fn every_hyper_parameter_has_a_range() {
        for mut optimizer in Optimizer::all() {
            assert_eq!(optimizer.check(), Ok(()));
            for index in 0..optimizer.settings().len() {
                for wrong in [-0.1, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e9] {
                    let mut other = optimizer;
                    let setting = other.settings().swap_remove(index);
                    let name = setting.name;
                    *setting.value = wrong;
                    let sentence = other.check().unwrap_err().to_string();
                    let expected = format!("optimizer {} has {name} {wrong:?}; it must", optimizer.name());
                    assert!(sentence.starts_with(&expected), "{sentence}");
                }
            }
        }
    }

    #[test]
    fn a_range_ends_where_f32_would_change_the_meaning() {
        assert!("adam:epsilon=0".parse::<Optimizer>().is_err());
        assert!("adam:epsilon=1e-46".parse::<Optimizer>().is_err());
        assert!("fedadam:tau=1e-19".parse::<Optimizer>().is_err());
        assert!("momentum:mu=0.99999999".parse::<Optimizer>().is_err());
        assert!(("momentum:mu=0.999999".parse::<Optimizer>()).is_ok());
    }
}
