// SPDX-License-Identifier: GPL-2.0

//! A kernel thread that works when it is woken.

use core::{
    mem::ManuallyDrop,
    ptr::{
        self,
        NonNull, //
    },
};

use kernel::{
    error::from_err_ptr,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        barrier::smp_mb,
        Arc, //
    },
};

use super::raw;

/// What a [`Thread`] does.
pub(crate) trait Work: Send + Sync + 'static {
    /// Does what there is to do.
    ///
    /// Returns in how many jiffies to be called again if nobody wakes the thread before.
    ///
    /// May sleep.
    fn work(this: &Arc<Self>) -> Option<usize>;

    /// Returns where the thread waits.
    fn bell(&self) -> &Bell;
}

/// What wakes a [`Thread`].
///
/// # Invariants
///
/// `task` is null or a task that does not go away before it is set to null.
pub(crate) struct Bell {
    rung: Atomic<bool>,
    task: Atomic<*mut raw::task_struct>,
}

impl Bell {
    /// Returns a bell that nobody hears yet.
    pub(crate) const fn new() -> Self {
        // INVARIANT: `task` is null.
        Self {
            rung: Atomic::new(false),
            task: Atomic::new(ptr::null_mut()),
        }
    }

    /// Wakes the thread.
    ///
    /// Any context. Not to be called while the thread is being dropped.
    pub(crate) fn ring(&self) {
        if self.rung.xchg(true, kernel::sync::atomic::Full) {
            return;
        }
        let _guard = kernel::sync::rcu::read_lock();
        let task = self.task.load(Acquire);
        if !task.is_null() {
            // SAFETY: By the type invariants it is valid: `Thread::drop()` waits for a grace
            // period between setting it to null and letting the task go.
            unsafe { raw::wake_up_process(task) };
        }
    }
}

/// A kernel thread; it is stopped when the instance is dropped.
///
/// # Invariants
///
/// `task` is a kernel thread that runs [`Self::main`] and that only this instance stops.
pub(crate) struct Thread<W: Work> {
    task: NonNull<raw::task_struct>,
    work: Arc<W>,
}

// SAFETY: A thread may be stopped from any other.
unsafe impl<W: Work> Send for Thread<W> {}
// SAFETY: Nothing can be done with a shared reference.
unsafe impl<W: Work> Sync for Thread<W> {}

impl<W: Work> Thread<W> {
    /// Starts a thread that does `work`.
    ///
    /// May sleep.
    pub(crate) fn new(name: &CStr, work: Arc<W>) -> Result<Self> {
        // The thread's own reference is borrowed from the instance, which outlives it.
        let data = Arc::as_ptr(&work).cast_mut().cast();

        // SAFETY: `main` is what the thread runs, with the data that it expects.
        let task = from_err_ptr(unsafe {
            raw::tmem_kthread_run(Some(Self::main), data, name.as_char_ptr())
        })?;
        let task = NonNull::new(task).ok_or(ENOMEM)?;

        work.bell().task.store(task.as_ptr(), Release);
        // What came before the thread could be woken.
        // SAFETY: The task was just created, and nobody stops it but this instance.
        unsafe { raw::wake_up_process(task.as_ptr()) };
        // INVARIANT: The task runs `main()`, and nobody else has been given it to stop.
        Ok(Self { task, work })
    }

    extern "C" fn main(data: *mut c_void) -> c_int {
        // SAFETY: `new()` gave a reference that outlives the thread, and that is not given back
        // here.
        let work = ManuallyDrop::new(unsafe { Arc::from_raw(data.cast::<W>().cast_const()) });

        loop {
            work.bell().rung.store(false, Relaxed);
            smp_mb(kernel::sync::barrier::Full);
            let again = W::work(&work);
            // SAFETY: This is a kernel thread.
            if unsafe { raw::tmem_kthread_wait(work.bell().rung.as_ptr(), again.unwrap_or(0)) } {
                return 0;
            }
        }
    }
}

impl<W: Work> Drop for Thread<W> {
    fn drop(&mut self) {
        self.work.bell().task.store(ptr::null_mut(), Release);
        kernel::sync::rcu::synchronize_rcu();
        // SAFETY: By the type invariants the task is valid, and stopped only here.
        unsafe { raw::kthread_stop(self.task.as_ptr()) };
    }
}

/// Returns the time in ticks. Any context.
pub(crate) fn jiffies() -> usize {
    // SAFETY: There are no requirements.
    unsafe { raw::tmem_jiffies() }
}
