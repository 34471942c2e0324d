// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the device does with requests beside, or instead of, answering them: set on the command
//! line, and changed while it runs.

use std::{ops::RangeInclusive, str::FromStr, time::Duration};

use virtio_tmem_abi::{Opcode, PageResult};

/// One way to misbehave, written `NAME` or `NAME:ARGUMENT`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Behaviour {
    /// `answer-nothing`, `answer-nothing:data`, `answer-nothing:control`: takes all requests, of
    /// one kind of virtqueue or of both, and answers them when it behaves otherwise again.
    AnswerNothing(Queues),
    /// `lose-one[:OPERATION]`: as `answer-nothing`, for the next request of an operation (`get`).
    LoseOne(Opcode),
    /// `lose-every[:OPERATION]`: as `answer-nothing`, for all requests of an operation (`get`).
    LoseEvery(Opcode),
    /// `hold:SECONDS`: answers each request on a data virtqueue so much later.
    Hold(Duration),
    /// `wrong-op`: gives results of another operation: `Flushed` for a get, `Hit` for a put,
    /// `Stored` for a flush. It writes no pages.
    WrongOp,
    /// `status:NUMBER`: gives that status.
    Status(u32),
    /// `count:NUMBER`: says that there are so many results.
    Count(u32),
    /// `epoch-flap`: names another epoch in every second answer.
    EpochFlap,
    /// `used-zero[:OPERATION]`: uses the requests of an operation, or of all, with a length of 0,
    /// and carries out nothing.
    UsedZero(Option<Opcode>),
    /// `short[:BYTES]`: uses requests with no more than that length (16).
    Short(u32),
    /// `long-used`: claims to have written a page more than there is room for.
    LongUsed,
    /// `bad-credits`: tells credits that make no sense.
    BadCredits,
    /// `unreachable:FIRST-LAST`: cannot reach pages that lie there, guest-physical and
    /// hexadecimal.
    Unreachable(RangeInclusive<u64>),
}

/// Which virtqueues are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queues {
    /// All that have requests.
    Both,
    /// The control virtqueue.
    Control,
    /// The data virtqueues.
    Data,
}

fn operation(name: &str) -> Result<Opcode, String> {
    match name {
        "put" => Ok(Opcode::Put),
        "get" => Ok(Opcode::Get),
        "flush" => Ok(Opcode::FlushPage),
        "flush-range" => Ok(Opcode::FlushRange),
        "flush-object" => Ok(Opcode::FlushObject),
        "flush-pool" => Ok(Opcode::FlushPool),
        "pool-create" => Ok(Opcode::PoolCreate),
        "pool-destroy" => Ok(Opcode::PoolDestroy),
        "pool-keep" => Ok(Opcode::PoolKeep),
        _ => Err(format!("there is no operation {name:?}")),
    }
}

impl FromStr for Behaviour {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, argument) = match text.split_once(':') {
            Some((name, argument)) => (name, Some(argument)),
            None => (text, None),
        };
        let number = |default: Option<u32>| match (argument, default) {
            (None, Some(default)) => Ok(default),
            (None, None) => Err(format!("{name} takes a number: {name}:NUMBER")),
            (Some(argument), _) => argument
                .parse()
                .map_err(|_| format!("{name} takes a number, not {argument:?}")),
        };
        let opcode = |default| argument.map_or(Ok(default), operation);
        let taken = match name {
            "answer-nothing" => Self::AnswerNothing(match argument {
                None => Queues::Both,
                Some("data") => Queues::Data,
                Some("control") => Queues::Control,
                Some(other) => return Err(format!("{name} takes data or control, not {other:?}")),
            }),
            "lose-one" => Self::LoseOne(opcode(Opcode::Get)?),
            "lose-every" => Self::LoseEvery(opcode(Opcode::Get)?),
            "hold" => {
                let seconds = argument.and_then(|seconds| seconds.parse().ok());
                let duration = seconds.and_then(|s| Duration::try_from_secs_f64(s).ok());
                Self::Hold(duration.ok_or("hold takes seconds: hold:SECONDS")?)
            }
            "status" => Self::Status(number(None)?),
            "count" => Self::Count(number(None)?),
            "used-zero" => Self::UsedZero(argument.map(operation).transpose()?),
            "short" => Self::Short(number(Some(16))?),
            "unreachable" => {
                let address = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16);
                let range = argument.and_then(|range| range.split_once('-'));
                let range = range.map(|(first, last)| (address(first), address(last)));
                match range {
                    Some((Ok(first), Ok(last))) => Self::Unreachable(first..=last),
                    _ => return Err("unreachable takes addresses: unreachable:FIRST-LAST".into()),
                }
            }
            _ if argument.is_some() => {
                return Err(format!("{name:?} takes no argument, or is unknown"))
            }
            "wrong-op" => Self::WrongOp,
            "epoch-flap" => Self::EpochFlap,
            "long-used" => Self::LongUsed,
            "bad-credits" => Self::BadCredits,
            _ => return Err(format!("there is no behaviour {name:?}")),
        };
        Ok(taken)
    }
}

impl Behaviour {
    /// Returns whether a request is taken, and not answered before the device behaves otherwise.
    pub(crate) fn keeps(&self, opcode: Option<Opcode>, control: bool) -> bool {
        match self {
            Self::AnswerNothing(Queues::Both) => true,
            Self::AnswerNothing(Queues::Control) => control,
            Self::AnswerNothing(Queues::Data) => !control,
            Self::LoseOne(lost) | Self::LoseEvery(lost) => opcode == Some(*lost),
            _ => false,
        }
    }

    /// Returns whether it uses a request with a length of 0.
    pub(crate) fn uses_with_zero(&self, opcode: Option<Opcode>) -> bool {
        match self {
            Self::UsedZero(None) => true,
            Self::UsedZero(which) => *which == opcode,
            _ => false,
        }
    }
}

/// The result that stands for another operation than `opcode`.
pub(crate) fn wrong_result(opcode: Opcode) -> PageResult {
    match opcode {
        Opcode::Get => PageResult::Flushed,
        Opcode::Put => PageResult::Hit,
        _ => PageResult::Stored,
    }
}

/// What is said on the control socket, one command a line.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Command {
    /// `behave [BEHAVIOUR…]`: behave so from now on, and not as before; without any, honestly.
    /// What was kept is answered, unless it is kept by these too.
    Behave(Vec<Behaviour>),
    /// `epoch-change`: forget all pages and have an epoch that was never there.
    EpochChange,
    /// `epoch-back`: go back to the epoch before the last change.
    EpochBack,
    /// `stat`: say what was counted.
    Stat,
}

impl FromStr for Command {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let mut words = line.split_whitespace();
        let command = match words.next() {
            Some("behave") => {
                return words
                    .map(str::parse)
                    .collect::<Result<_, _>>()
                    .map(Self::Behave)
            }
            Some("epoch-change") => Self::EpochChange,
            Some("epoch-back") => Self::EpochBack,
            Some("stat") => Self::Stat,
            _ => return Err("commands are behave, epoch-change, epoch-back and stat".into()),
        };
        match words.next() {
            None => Ok(command),
            Some(word) => Err(format!("{word:?} is one word too many")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behaviours_are_read_as_they_are_documented() {
        let cases = [
            ("answer-nothing", Behaviour::AnswerNothing(Queues::Both)),
            (
                "answer-nothing:control",
                Behaviour::AnswerNothing(Queues::Control),
            ),
            ("lose-one", Behaviour::LoseOne(Opcode::Get)),
            ("lose-every:put", Behaviour::LoseEvery(Opcode::Put)),
            ("hold:0.5", Behaviour::Hold(Duration::from_millis(500))),
            ("used-zero:get", Behaviour::UsedZero(Some(Opcode::Get))),
            ("short", Behaviour::Short(16)),
            ("short:31", Behaviour::Short(31)),
            (
                "unreachable:0x1000-1fff",
                Behaviour::Unreachable(0x1000..=0x1fff),
            ),
            ("wrong-op", Behaviour::WrongOp),
        ];
        for (text, behaviour) in cases {
            assert_eq!(text.parse(), Ok(behaviour), "{text}");
        }
        for text in [
            "",
            "nonsense",
            "wrong-op:1",
            "hold",
            "hold:-1",
            "status",
            "count:x",
            "lose-one:nothing",
            "unreachable:12",
        ] {
            assert!(text.parse::<Behaviour>().is_err(), "{text}");
        }
    }

    #[test]
    fn commands_are_read() {
        assert_eq!("behave".parse(), Ok(Command::Behave(Vec::new())));
        assert_eq!(
            "behave hold:1 wrong-op\n".parse(),
            Ok(Command::Behave(vec![
                Behaviour::Hold(Duration::from_secs(1)),
                Behaviour::WrongOp
            ]))
        );
        assert_eq!("epoch-change".parse(), Ok(Command::EpochChange));
        assert!("epoch-change now".parse::<Command>().is_err());
        assert!("behave nonsense".parse::<Command>().is_err());
        assert!("".parse::<Command>().is_err());
    }

    #[test]
    fn only_what_is_meant_is_kept() {
        let get = Some(Opcode::Get);
        let all = Behaviour::AnswerNothing(Queues::Both);
        assert!(all.keeps(get, false) && all.keeps(None, true));
        let control = Behaviour::AnswerNothing(Queues::Control);
        assert!(!control.keeps(get, false) && control.keeps(None, true));
        let lose = Behaviour::LoseEvery(Opcode::Get);
        assert!(lose.keeps(get, false) && !lose.keeps(Some(Opcode::Put), false));
        assert!(!Behaviour::WrongOp.keeps(get, false));
    }
}
