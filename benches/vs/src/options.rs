//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use lexopt::{Arg, Parser, ValueExt as _};

use crate::cases::Case;
use crate::measure::Pace;
use crate::work::KEY;

/// What is asked for.
#[derive(Debug)]
pub struct Options {
    /// The cases to run.
    pub cases: Vec<Case>,
    /// Bytes in a value.
    pub value: usize,
    /// How often, and how long.
    pub pace: Pace,
    /// JSON lines instead of tables.
    pub json: bool,
    /// Where charts go.
    pub svg: Option<PathBuf>,
}

const HELP: &str = "\
larder's memcached and Redis clients beside the socket's limit and other clients, measured in one run

Usage: larder-vs [OPTIONS]

  --case NAME        only cases whose name contains this; may be repeated
  --value-size N     bytes in a value (500)
  --rounds N         rounds to take the median of (9)
  --quick            one short round: shows that all subjects work, not how fast they are
  --json             an object a line instead of tables
  --svg DIR          also writes a bar chart for each case
  --help             this
";

impl Options {
    /// The options of this process; `None` if it was only asked for help.
    pub fn from_args() -> Result<Option<Self>> {
        Self::parse(Parser::from_env())
    }

    fn parse(mut arguments: Parser) -> Result<Option<Self>> {
        let mut names: Vec<String> = Vec::new();
        let mut rounds = None;
        let mut quick = false;
        let mut options = Self {
            cases: Vec::new(),
            value: 500,
            pace: Pace {
                rounds: 9,
                slice: Duration::from_millis(80),
            },
            json: false,
            svg: None,
        };
        while let Some(argument) = arguments.next()? {
            match argument {
                Arg::Long("case") => names.push(arguments.value()?.string()?),
                Arg::Long("value-size") => options.value = arguments.value()?.parse()?,
                Arg::Long("rounds") => rounds = Some(arguments.value()?.parse()?),
                Arg::Long("quick") => quick = true,
                Arg::Long("json") => options.json = true,
                Arg::Long("svg") => options.svg = Some(arguments.value()?.into()),
                Arg::Long("help") => {
                    print!("{HELP}");
                    return Ok(None);
                }
                other => return Err(other.unexpected()).context("see --help"),
            }
        }
        if quick {
            options.pace = Pace {
                rounds: 1,
                slice: Duration::from_millis(4),
            };
        }
        if let Some(rounds) = rounds {
            options.pace.rounds = rounds;
        }
        ensure!(options.pace.rounds > 0, "there is no median of 0 rounds");
        ensure!(
            (KEY..=512 * 1024).contains(&options.value),
            "values have {KEY} to 524288 bytes, so that they can begin with their key"
        );
        options.cases = selected(&names)?;
        Ok(Some(options))
    }
}

fn selected(names: &[String]) -> Result<Vec<Case>> {
    let wanted =
        |case: &Case| names.is_empty() || names.iter().any(|name| case.name().contains(name));
    let cases: Vec<_> = Case::ALL.into_iter().filter(wanted).collect();
    if cases.is_empty() {
        let known: Vec<_> = Case::ALL.into_iter().map(Case::name).collect();
        bail!(
            "no case is called {}; known cases: {}",
            names.join(" or "),
            known.join(", ")
        );
    }
    Ok(cases)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Options> {
        let options = Options::parse(Parser::from_args(arguments))?;
        Ok(options.expect("nobody asked for help"))
    }

    #[test]
    fn cases_are_selected_by_parts_of_their_names() {
        let options = parse(&["--case", "pool", "--case", "fill"]).unwrap();
        let names: Vec<_> = options.cases.into_iter().map(Case::name).collect();
        assert_eq!(names, ["fill-1000", "pool-1", "pool-3", "pool-50"]);
    }

    #[test]
    fn unknown_cases_are_answered_with_the_known_ones() {
        let error = parse(&["--case", "bluk"]).unwrap_err().to_string();
        assert!(
            error.starts_with("no case is called bluk; known cases: bulk-100, "),
            "{error}"
        );
    }

    #[test]
    fn rounds_win_over_quick_in_any_order() {
        for arguments in [["--quick", "--rounds=3"], ["--rounds=3", "--quick"]] {
            assert_eq!(parse(&arguments).unwrap().pace.rounds, 3);
        }
    }

    #[test]
    fn values_too_short_for_their_key_are_refused() {
        assert!(parse(&["--value-size", "31"]).is_err());
        assert!(parse(&["--rounds", "0"]).is_err());
    }
}
