// A CUDA thread is a fiber, switched at barriers and shuffles, in the order of the schedule.
#include <ucontext.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <stdexcept>

#include "emulated_block.h"

namespace aadl::cuda_on_host {
namespace {

// A place in some fiber. Saved and resumed by the compiler: swapcontext would ask the kernel for
// the signal mask every time, which takes longer than most turns.
struct Resumption {
  void* registers[5];
};

constexpr size_t kStack = 128 * 1024;

// AddressSanitizer must not take the other stack for this one, nor the compiler conclude from the
// body of such a function which registers survive it.
#ifdef __clang__
#define AADL_SWITCHES __attribute__((noinline, no_sanitize("address")))
#else
#define AADL_SWITCHES __attribute__((noipa, no_sanitize("address")))
#endif

// A function of its own: a jump must not be where a place is saved.
AADL_SWITCHES void jump(Resumption& to) { __builtin_longjmp(to.registers, 1); }

AADL_SWITCHES void switch_to(Resumption& from, Resumption& to) {
  if (__builtin_setjmp(from.registers) == 0) jump(to);
}

struct Fiber : Thread {
  ucontext_t context = {};  // before its first turn
  Resumption resumption = {};
  const Barrier* waits_at = nullptr;
  int64_t generation = 0;  // of the barrier, when the fiber came there
  bool begun = false, done = false;
};

// The fibers of a launch and the turns that they take.
struct Scheduler {
  std::vector<Fiber> fibers;
  const std::function<void()>& body;
  std::mt19937 random{schedule_seed};
  Resumption resumption = {};
  std::string failure = {};

  void shuffle(std::vector<size_t>& order) {
    if (schedule_seed != 0) std::shuffle(order.begin(), order.end(), random);
  }
};

Scheduler* scheduler = nullptr;

Fiber& running() { return static_cast<Fiber&>(*self); }

void switch_back() { switch_to(running().resumption, scheduler->resumption); }

// A fiber: one CUDA thread after the other, each of its own block.
void run_threads() {
  for (;;) {
    scheduler->body();
    leave(*self->block);
    running().done = true;
    switch_back();
  }
}

AADL_SWITCHES void begin(Fiber& fiber) {
  if (__builtin_setjmp(scheduler->resumption.registers) == 0) setcontext(&fiber.context);
}

void resume(Fiber& fiber) {
  self = &fiber;
  position = &fiber.position;
  if (fiber.begun) return switch_to(scheduler->resumption, fiber.resumption);
  fiber.begun = true;
  begin(fiber);
}

// Stacks are kept: to get so many from the system takes longer than a launch.
char* stack(size_t i) {
  static std::vector<std::unique_ptr<char[]>> stacks;
  while (stacks.size() <= i) stacks.emplace_back(new char[kStack]);
  return stacks[i].get();
}

__attribute__((noinline)) void prepare(ucontext_t& context, char* memory) {
  getcontext(&context);
  context.uc_stack.ss_sp = memory;
  context.uc_stack.ss_size = kStack;
  context.uc_link = nullptr;
  makecontext(&context, run_threads, 0);
}

bool may_go_on(const Fiber& fiber) {
  const Barrier* barrier = fiber.waits_at;
  return !fiber.done && (!barrier || barrier->generation != fiber.generation);
}

// Gives every fiber turns until all have returned.
void run_block(Block& block) {
  std::vector<Fiber>& fibers = scheduler->fibers;
  for (Fiber& fiber : fibers) {
    fiber.enter(block);
    fiber.done = false;
  }
  std::vector<size_t> order(fibers.size());
  std::iota(order.begin(), order.end(), 0);
  for (bool progress = true; progress;) {
    progress = false;
    scheduler->shuffle(order);
    for (const size_t i : order) {
      if (!may_go_on(fibers[i])) continue;
      progress = true;
      resume(fibers[i]);
      if (!scheduler->failure.empty()) throw std::logic_error(scheduler->failure);
    }
  }
  for (const Fiber& fiber : fibers) {
    if (!fiber.done) {
      throw std::logic_error("divergent barrier: some threads wait at " +
                             described(fiber.waits_at->place) + ", others elsewhere");
    }
  }
}

}  // namespace

void wait(Barrier& barrier, const Place& place) {
  Fiber& fiber = running();
  fiber.generation = barrier.generation;
  if (arrive(barrier, place)) return;
  fiber.waits_at = &barrier;
  switch_back();
  fiber.waits_at = nullptr;
}

void run(const std::vector<dim3>& blocks, dim3 grid, dim3 block, int64_t shared_bytes,
         const std::function<void()>& body) {
  Scheduler own = {std::vector<Fiber>(block.x), body};
  scheduler = &own;
  for (unsigned i = 0; i < block.x; ++i) {
    own.fibers[i].position = position_of(i, grid, block);
    prepare(own.fibers[i].context, stack(i));
  }
  std::vector<size_t> order(blocks.size());
  std::iota(order.begin(), order.end(), 0);
  own.shuffle(order);
  for (const size_t i : order) {
    Block own_block(blocks[i], static_cast<int>(block.x), shared_bytes);
    run_block(own_block);
  }
}

// The fiber is left as it is, and the launch throws.
void fail(const std::string& message) {
  scheduler->failure = message;
  for (;;) switch_back();
}

void* shared_memory(const void* tag, size_t bytes) {
  return shared_memory_of(*self->block, tag, bytes);
}

}  // namespace aadl::cuda_on_host
