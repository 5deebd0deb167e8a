// A parallel loop. It uses OpenMP, so that torch's thread pool is the only one in the process, or a pool of its own on
// macOS, whose compiler has no OpenMP, and under ThreadSanitizer, which does not understand it.
#pragma once

#include <cstdint>

namespace pliant {

// Calls body(context, task, worker) for every task in 0 .. tasks - 1, in any order; worker is in 0 .. threads - 1.
void parallel_tasks(int64_t tasks, int threads, void (*body)(const void*, int64_t, int), const void* context);

template <class Body>
void parallel(int64_t tasks, int threads, const Body& body) {
    parallel_tasks(
        tasks, threads,
        [](const void* context, int64_t task, int worker) { (*static_cast<const Body*>(context))(task, worker); },
        &body);
}

}  // namespace pliant
