//! Memory of this process. It contains keys and secrets, so core dumps are off, and no process of
//! the same user can read it.

use std::io;

use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};

/// Disables core dumps and, with the same flag, debuggers of the same user.
pub(super) fn keep_private() -> io::Result<()> {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    // A service manager may have set the limit already, and may forbid the call.
    if getrlimit(Resource::Core) != none {
        setrlimit(Resource::Core, none)?;
    }
    // The limit does not apply to a core dump that is piped to a program.
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

#[cfg(test)]
mod tests {
    use rustix::process::dumpable_behavior;

    use super::*;

    /// TL14: neither by the limit nor by the flag is there a core dump.
    #[test]
    fn there_are_no_core_dumps() {
        keep_private().unwrap();
        keep_private().unwrap();
        assert_eq!(getrlimit(Resource::Core), Rlimit { current: Some(0), maximum: Some(0) });
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
    }
}
