//! Has the system's allocator keep what is freed, since as much is needed again with the next packets.

/// glibc gives the end of a heap back when 128 KiB of it are free, and gets it again page by page. What packets are read
/// into is freed and taken anew all the time: without this a server has a page fault for every 4 KiB that come. Buffers from
/// 512 KiB on, which are pooled where they are needed often, are given back at once.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT: [(&str, &str); 2] =
    [("MALLOC_TRIM_THRESHOLD_", "67108864"), ("MALLOC_MMAP_THRESHOLD_", "524288")];

/// The variables that have the allocator keep what is freed, for the environment of a program that is started; none if this
/// program's own already says how the allocator is to work.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn memory_variables() -> &'static [(&'static str, &'static str)] {
    let is_set = |name: &str| std::env::var_os(name).is_some();
    match is_set("GLIBC_TUNABLES") || KEPT.iter().any(|(name, _)| is_set(name)) {
        true => &[],
        false => &KEPT,
    }
}

/// There are none for this system's allocator.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn memory_variables() -> &'static [(&'static str, &'static str)] {
    &[]
}

/// Starts this program anew, in the same process, with an allocator that keeps up to 64 MiB of free memory at the end of each
/// heap. To be called first thing. Does nothing if the environment already says how the allocator is to work, where that is
/// not glibc's, or if the system does not let it: then what follows is only slower.
pub(crate) fn keep_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        use std::os::unix::process::CommandExt;

        if memory_variables().is_empty() {
            return;
        }
        let Ok(program) = std::env::current_exe() else { return };
        let mut arguments = std::env::args_os();
        let mut anew = std::process::Command::new(program);
        if let Some(name) = arguments.next() {
            anew.arg0(name);
        }
        // It comes back only with an error.
        let _ = anew.args(arguments).envs(KEPT).exec();
    }
}
