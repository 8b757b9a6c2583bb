//! Group commit: operations that wait at the same time travel in one command, as databases let
//! transactions share one sync of the log. There is no timer: an operation that finds no command
//! running starts one at once, and what arrives meanwhile travels with the next.
//!
//! A command that is slow holds no others back: after [`SLOW`] another may run beside it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    runtime::Handle,
    sync::oneshot,
    time::{Instant, timeout},
};

use super::{connection::Connection, error::MongoError};

/// Commands that run at once, slow ones not counted.
const RUNNING_MAX: usize = 4;
/// Operations in one command.
const OPERATIONS_MAX: usize = 256;
/// Age of a command from which it is slow.
const SLOW: Duration = Duration::from_millis(250);

/// Command that carries many operations.
#[async_trait]
pub(crate) trait GroupCommand: Send + Sync + 'static {
    /// One operation.
    type Operation: Send + 'static;
    /// Its outcome.
    type Outcome: Send + 'static;

    /// Runs the operations; returns the outcome of each, in their order. An error is that of all:
    /// any of them may have been applied.
    async fn run(
        &self,
        connection: &Connection,
        operations: Vec<Self::Operation>,
    ) -> Result<Vec<Result<Self::Outcome, MongoError>>, MongoError>;
}

/// Queue of operations for commands of one kind.
pub(crate) struct GroupCommit<C: GroupCommand>(Arc<Group<C>>);

struct Group<C: GroupCommand> {
    /// Runtime of the commands. Calls are answered on runtimes that end before the store does, and
    /// a command carries operations of all of them.
    runtime: Handle,
    connection: Arc<Connection>,
    command: C,
    state: Mutex<GroupState<C>>,
}

struct GroupState<C: GroupCommand> {
    waiting: VecDeque<Waiting<C>>,
    /// Number of the commands that run and are not slow.
    running: usize,
}

/// Operation in the queue.
struct Waiting<C: GroupCommand> {
    operation: C::Operation,
    since: Instant,
    reply: Reply<C>,
}

/// Operations of one command, with where their outcomes go.
type Taken<C> = (Vec<<C as GroupCommand>::Operation>, Vec<Reply<C>>);

type Reply<C> = oneshot::Sender<Result<<C as GroupCommand>::Outcome, MongoError>>;

impl<C: GroupCommand> GroupCommit<C> {
    /// Creates an empty queue; its commands run on the runtime of the caller.
    pub(crate) fn new(connection: Arc<Connection>, command: C) -> Self {
        let state = Mutex::new(GroupState { waiting: VecDeque::new(), running: 0 });
        Self(Arc::new(Group { runtime: Handle::current(), connection, command, state }))
    }

    /// Runs an operation with those that wait beside it. One that no command has taken within the
    /// deadline of a call is not sent any more.
    pub(crate) async fn run(&self, operation: C::Operation) -> Result<C::Outcome, MongoError> {
        let (reply, outcome) = oneshot::channel();
        let waiting = Waiting { operation, since: Instant::now(), reply };
        self.0.state().waiting.push_back(waiting);
        self.0.start_commands();
        outcome.await.map_err(|_| MongoError::Closed)?
    }
}

impl<C: GroupCommand> Group<C> {
    /// Starts commands for the operations that wait, as many as may run.
    fn start_commands(self: &Arc<Self>) {
        while let Some((operations, replies)) = self.next_command() {
            let group = self.clone();
            self.runtime.spawn(async move { group.run(operations, replies).await });
        }
    }

    fn next_command(&self) -> Option<Taken<C>> {
        let mut state = self.state();
        if state.running >= RUNNING_MAX {
            return None;
        }
        let deadline = self.connection.deadline();
        let (mut operations, mut replies) = (Vec::new(), Vec::new());
        while operations.len() < OPERATIONS_MAX
            && let Some(waiting) = state.waiting.pop_front()
        {
            if waiting.since.elapsed() < deadline {
                operations.push(waiting.operation);
                replies.push(waiting.reply);
            } else {
                // The caller may be gone.
                let _ = waiting.reply.send(Err(MongoError::Timeout(deadline)));
            }
        }
        if operations.is_empty() {
            return None;
        }
        state.running = state.running.saturating_add(1);
        Some((operations, replies))
    }

    async fn run(self: Arc<Self>, operations: Vec<C::Operation>, replies: Vec<Reply<C>>) {
        let running = Running(self.clone());
        let mut command = self.command.run(&self.connection, operations);
        let in_time = timeout(SLOW, &mut command).await;
        drop(running);
        let outcomes = match in_time {
            Ok(outcomes) => outcomes,
            Err(_) => command.await,
        };
        match outcomes {
            Ok(outcomes) => {
                for (reply, outcome) in replies.into_iter().zip(outcomes) {
                    let _ = reply.send(outcome);
                }
            }
            Err(fault) => {
                for reply in replies {
                    let _ = reply.send(Err(fault.clone()));
                }
            }
        }
    }

    /// Notes that a command has ended or is slow, and starts the next.
    fn release(self: &Arc<Self>) {
        let mut state = self.state();
        state.running = state.running.saturating_sub(1);
        drop(state);
        self.start_commands();
    }

    fn state(&self) -> MutexGuard<'_, GroupState<C>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Command that runs and is not slow; counted until it is dropped, for whatever reason.
struct Running<C: GroupCommand>(Arc<Group<C>>);

impl<C: GroupCommand> Drop for Running<C> {
    fn drop(&mut self) {
        self.0.release();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, future::join_all};
    use tokio::{
        sync::Semaphore,
        task::yield_now,
        time::{advance, pause},
    };

    use super::*;

    /// Command that waits for a permit and returns the number of operations that travelled together;
    /// an operation `None` fails alone.
    struct Counted {
        permits: Arc<Semaphore>,
    }

    #[async_trait]
    impl GroupCommand for Counted {
        type Operation = Option<u32>;
        type Outcome = (u32, usize);

        async fn run(
            &self,
            _: &Connection,
            operations: Vec<Option<u32>>,
        ) -> Result<Vec<Result<(u32, usize), MongoError>>, MongoError> {
            let permit = self.permits.acquire().await.map_err(|_| MongoError::Closed)?;
            permit.forget();
            let together = operations.len();
            let outcome = |operation: Option<u32>| {
                operation.map(|number| (number, together)).ok_or(MongoError::TooManyPending)
            };
            Ok(operations.into_iter().map(outcome).collect())
        }
    }

    async fn group() -> (GroupCommit<Counted>, Arc<Semaphore>) {
        // Nothing listens there, and nothing is sent.
        let connection = Connection::new("mongodb://127.0.0.1:1", Duration::from_secs(2)).await;
        let permits = Arc::new(Semaphore::new(0));
        let command = Counted { permits: permits.clone() };
        // The driver has started its own tasks.
        pause();
        (GroupCommit::new(Arc::new(connection.unwrap()), command), permits)
    }

    /// Calls are answered on runtimes that end before the store does: a command carries operations of
    /// all of them, and ends with none. A command that is dropped is no longer counted.
    #[test]
    fn commands_outlive_the_runtime_of_a_caller() {
        let runtime =
            || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (main, worker) = (runtime(), runtime());
        let (group, permits) = main.block_on(async {
            let connection = Connection::new("mongodb://127.0.0.1:1", Duration::from_secs(2)).await;
            let permits = Arc::new(Semaphore::new(0));
            let command = Counted { permits: permits.clone() };
            (Arc::new(GroupCommit::new(Arc::new(connection.unwrap()), command)), permits)
        });
        let called = group.clone();
        worker.block_on(async {
            assert!(Box::pin(called.run(Some(1))).now_or_never().is_none());
            yield_now().await;
        });
        // The caller of this one waits on the main runtime.
        let mut other = Box::pin(group.run(Some(2)));
        assert!(other.as_mut().now_or_never().is_none());
        drop(worker);
        assert_eq!(group.0.state().running, 2);
        permits.add_permits(2);
        assert_eq!(main.block_on(other).unwrap(), (2, 1));
        main.block_on(async {
            while group.0.state().running > 0 {
                yield_now().await;
            }
        });
    }

    /// What waits while commands run travels with the next one, each operation with its own outcome
    /// in its own order.
    #[tokio::test]
    async fn what_waits_travels_together() {
        let (group, permits) = group().await;
        let mut first: Vec<_> = (0..4).map(|number| Box::pin(group.run(Some(number)))).collect();
        for call in &mut first {
            assert!(call.now_or_never().is_none(), "each of these starts a command at once");
        }
        let mut rest: Vec<_> =
            (0..300).map(|number| Box::pin(group.run((number != 7).then_some(number)))).collect();
        for call in &mut rest {
            assert!(call.now_or_never().is_none());
        }
        permits.add_permits(4 + 2);
        for (number, call) in (0..).zip(first) {
            assert_eq!(call.await.unwrap(), (number, 1));
        }
        for (number, outcome) in (0..).zip(join_all(rest).await) {
            match outcome {
                Ok(outcome) => assert_eq!(outcome, (number, if number < 256 { 256 } else { 44 })),
                Err(fault) => {
                    assert!(number == 7 && matches!(fault, MongoError::TooManyPending));
                }
            }
        }
    }

    /// Commands that are slow hold no others back; an operation that none has taken within the
    /// deadline is not sent; a command that fails as a whole fails each of its operations.
    #[tokio::test]
    async fn slow_commands_hold_nothing_back() {
        let (group, permits) = group().await;
        let mut stuck: Vec<_> = (0..4).map(|number| Box::pin(group.run(Some(number)))).collect();
        for call in &mut stuck {
            assert!(call.now_or_never().is_none());
        }
        let mut next = Box::pin(group.run(Some(9)));
        assert!(next.as_mut().now_or_never().is_none());
        let let_others_run = async || {
            for _ in 0..16 {
                yield_now().await;
            }
        };
        let_others_run().await;
        advance(SLOW + Duration::from_millis(1)).await;
        let_others_run().await;
        // Five commands are with the server now, and all but four of them are slow.
        assert_eq!(group.0.state().running, 1);
        assert!(group.0.state().waiting.is_empty());
        let mut late: Vec<_> = (0..4).map(|number| Box::pin(group.run(Some(number)))).collect();
        for call in &mut late {
            assert!(call.now_or_never().is_none());
        }
        assert_eq!(group.0.state().waiting.len(), 1, "three more commands may run");
        permits.close();
        for call in stuck.into_iter().chain([next]).chain(late) {
            assert!(matches!(call.await, Err(MongoError::Closed)));
        }
        let waiting = Waiting {
            operation: Some(1),
            since: Instant::now() - Duration::from_secs(2),
            reply: oneshot::channel().0,
        };
        group.0.state().waiting.push_back(waiting);
        assert!(group.0.next_command().is_none(), "it waited for its whole deadline");
        assert!(group.0.state().waiting.is_empty());
    }
}
