// A parallel loop. It uses OpenMP, so that torch's thread pool is the only one in the process, or a pool of its own on
// macOS, whose compiler has no OpenMP, and under ThreadSanitizer, which does not understand it.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace pliant {

// Which task a thread takes: the next one that nobody has; or first those of a range of its own, then what others have
// left of theirs. With ranges, what neighbouring tasks share stays in the caches of one core, also from one loop to the
// next: in some machines the cores are so far apart that they lose more time by exchanging it than they gain as two.
enum class Sharing { in_turn, in_ranges };

// While this is set, parallel loops append the costs of their tasks to it and run on one thread.
inline std::vector<std::pair<Sharing, std::vector<double>>>* recorded_costs = nullptr;

// Calls body(context, task, worker) for every task in 0 .. tasks - 1, in any order; worker is in 0 .. threads - 1.
void parallel_tasks(int64_t tasks, int threads, Sharing sharing, void (*body)(const void*, int64_t, int),
                    const void* context);

// cost(task) is about the number of multiplications that would take as long as the task.
template <class Body, class Cost>
void parallel(int64_t tasks, int threads, const Body& body, const Cost& cost, Sharing sharing = Sharing::in_turn) {
    if (recorded_costs) {
        std::vector<double> costs;
        for (int64_t task = 0; task < tasks; ++task) costs.push_back(static_cast<double>(cost(task)));
        recorded_costs->emplace_back(sharing, std::move(costs));
        threads = 1;
    }
    parallel_tasks(
        tasks, threads, sharing,
        [](const void* context, int64_t task, int worker) { (*static_cast<const Body*>(context))(task, worker); },
        &body);
}
template <class Body>
void parallel(int64_t tasks, int threads, const Body& body) {
    parallel(tasks, threads, body, [](int64_t) { return 1; });
}

}  // namespace pliant
