//! Settings, each written once, with type, default, documentation, environment variable and limits. The macro makes the
//! struct of the configuration and the flags of the command line from them.

use std::{fmt::Display, ops::RangeInclusive};

use serde::Serialize;
use serde_json::Value;

/// Defines the settings of one concern: `$config` has their values, `$flags` those of the command line and the
/// environment, where given.
///
/// A setting is `name: type = default, "VARIABLE", "PLACEHOLDER"`; without a default its value is an `Option`. Then
/// follow, where needed, `unset` with the help's text for the default, `in` with the limits, `unit` with what follows the
/// limits in an error, and `arg` with further attributes of clap.
macro_rules! settings {
    (
        $(#[doc = $about:literal])+
        $config:ident, $flags:ident {
            $(
                $(#[doc = $doc:literal])+
                $name:ident: $type:ty $(= $default:expr)?, $variable:literal, $placeholder:literal
                $(, unset $unset:literal)? $(, in $limits:expr)? $(, unit $unit:literal)? $(, arg [$($arg:tt)*])?;
            )+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        pub struct $config {
            $(
                $(#[doc = $doc])+
                #[doc = ""]
                #[doc = concat!("Default: ", settings!(@default_text $($default)?; $($unset)?), ".")]
                pub $name: settings!(@type $type; $($default)?),
            )+
        }

        impl Default for $config {
            fn default() -> Self {
                Self { $($name: settings!(@default $($default)?),)+ }
            }
        }

        impl $config {
            /// Checks the limits of every setting.
            pub(super) fn check_limits(&self) -> anyhow::Result<()> {
                $(settings!(@check self $name; $($limits)?; $($unit)?);)+
                Ok(())
            }
        }

        #[derive(Debug, Default, clap::Args, serde::Serialize)]
        pub(super) struct $flags {
            $(
                #[arg(
                    long,
                    env = $variable,
                    value_name = $placeholder,
                    help = $crate::config::settings::help(
                        &[$($doc),+], settings!(@shown $config $name; $($unset)?),
                    )
                    $(, $($arg)*)?
                )]
                #[serde(skip_serializing_if = "Option::is_none")]
                $name: Option<$type>,
            )+
        }
    };
    (@check $self:ident $name:ident;;) => {};
    (@check $self:ident $name:ident; $limits:expr; $($unit:literal)?) => {
        $crate::config::settings::check(stringify!($name), &$self.$name, $limits, concat!("" $(, $unit)?))?
    };
    (@type $type:ty;) => { Option<$type> };
    (@type $type:ty; $default:expr) => { $type };
    (@default) => { None };
    (@default $default:expr) => { $default };
    (@default_text $($default:expr)?; $unset:literal) => { $unset };
    (@default_text $default:expr;) => { concat!("`", stringify!($default), "`") };
    (@shown $config:ident $name:ident; $unset:literal) => { $unset.to_owned() };
    (@shown $config:ident $name:ident;) => { $crate::config::settings::shown(&$config::default().$name) };
}

/// Returns the text of `--help`: the lines of a doc comment and the default.
pub fn help(doc: &[&str], default: String) -> String {
    let lines: Vec<&str> = doc.iter().map(|line| line.trim()).collect();
    format!("{} [default: {default}]", lines.join(" "))
}

/// Returns a default as the configuration file has it, without quotes.
pub fn shown(default: &impl Serialize) -> String {
    match serde_json::to_value(default) {
        Ok(Value::String(text)) => text,
        Ok(Value::Number(number)) => number.as_f64().map_or_else(String::new, |number| number.to_string()),
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}

/// A value with limits, or none.
pub trait Limited {
    /// The type of the limits.
    type Number: PartialOrd + Display;

    /// Returns the value to be compared with the limits; `None` is within any limits.
    fn number(&self) -> Option<Self::Number>;
}

macro_rules! limited {
    ($($number:ty),+) => {
        $(impl Limited for $number {
            type Number = Self;

            fn number(&self) -> Option<Self> {
                Some(*self)
            }
        })+
    };
}

limited!(u32, u64, usize, f32, f64);

impl<T: Limited> Limited for Option<T> {
    type Number = T::Number;

    fn number(&self) -> Option<T::Number> {
        self.as_ref().and_then(Limited::number)
    }
}

/// Checks a setting.
///
/// # Errors
/// The value is outside of its limits; the message names the setting, the value and the limits.
pub fn check<T: Limited>(
    name: &str,
    value: &T,
    limits: RangeInclusive<T::Number>,
    unit: &str,
) -> anyhow::Result<()> {
    let Some(number) = value.number() else { return Ok(()) };
    anyhow::ensure!(
        limits.contains(&number),
        "{name} is {number}, it must be from {} to {}{unit}",
        limits.start(),
        limits.end()
    );
    Ok(())
}
