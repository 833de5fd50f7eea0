#include "cuda_on_host.h"

#include <algorithm>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#ifdef AADL_HOST_THREADS
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <thread>
#else
#include <ucontext.h>
#endif

namespace aadl::cuda_on_host {
namespace {

unsigned schedule_seed = 0;

// Memory of which every byte is 0xff: NaN as a float or double.
struct SharedMemory {
  const void* tag;
  std::unique_ptr<unsigned char[]> bytes;

  SharedMemory(const void* tag, size_t size) : tag(tag), bytes(new unsigned char[size]) {
    std::memset(bytes.get(), 0xff, size);
  }
};

// Where `size` threads wait for each other.
struct Barrier {
  int size = 0;
  int arrived = 0;
  int returned = 0;
  int64_t generation = 0;
  Place place = {};
};

struct Warp {
  Barrier barrier;
  // Two sets by turns: a lane may begin the next exchange while another still reads from this one.
  uint64_t values[2][kLanes] = {};
};

// What the threads of a running block have in common.
struct Block {
  dim3 index;
  Barrier barrier;
  std::vector<Warp> warps;
  std::vector<SharedMemory> shared;  // the dynamic one first
#ifdef AADL_HOST_THREADS
  std::mutex mutex;
  std::condition_variable changed;
#endif

  Block(dim3 index, int threads, int64_t shared_bytes) : index(index), warps(threads / kLanes) {
    barrier.size = threads;
    for (Warp& warp : warps) warp.barrier.size = kLanes;
    shared.emplace_back(nullptr, shared_bytes);
  }
};

#ifndef AADL_HOST_THREADS
// A place in some fiber. Saved and resumed by the compiler: swapcontext would ask the kernel for
// the signal mask every time, which takes longer than most turns.
struct Resumption {
  void* registers[5];
};
#endif

#ifdef AADL_HOST_THREADS
#ifdef __SANITIZE_THREAD__
extern "C" void AnnotateIgnoreSyncBegin(const char*, int);
extern "C" void AnnotateIgnoreSyncEnd(const char*, int);
extern "C" void AnnotateIgnoreReadsBegin(const char*, int);
extern "C" void AnnotateIgnoreReadsEnd(const char*, int);
extern "C" void AnnotateIgnoreWritesBegin(const char*, int);
extern "C" void AnnotateIgnoreWritesEnd(const char*, int);
#endif

// Holds a block's mutex for the housekeeping of the emulation, unseen by ThreadSanitizer: else
// threads would seem to wait for each other where the kernel does not make them.
class Unseen {
 public:
  explicit Unseen(Block& block) : block_(block) {
#ifdef __SANITIZE_THREAD__
    AnnotateIgnoreSyncBegin(__FILE__, __LINE__);
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
#endif
    block_.mutex.lock();
  }
  ~Unseen() {
    block_.mutex.unlock();
#ifdef __SANITIZE_THREAD__
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
    AnnotateIgnoreSyncEnd(__FILE__, __LINE__);
#endif
  }

 private:
  Block& block_;
};
#endif

struct Thread {
  Position position = {};
  Block* block = nullptr;
  int64_t exchanges = 0;
#ifndef AADL_HOST_THREADS
  ucontext_t context = {};  // of the fiber, before its first turn
  Resumption resumption = {};
  const Barrier* waits_at = nullptr;
  int64_t generation = 0;  // of the barrier, when the thread came there
  bool begun = false, done = false;
#endif

  void enter(Block& entered) {
    block = &entered;
    position.block = entered.index;
    exchanges = 0;
#ifndef AADL_HOST_THREADS
    done = false;
#endif
  }
};

thread_local Thread* self = nullptr;

std::string described(const Place& place) {
  return std::string(place.file) + ":" + std::to_string(place.line);
}

// Counts the running thread in; true if it is the last, so that all may go on.
bool arrive(Barrier& barrier, const Place& place) {
  if (barrier.returned > 0) {
    fail("divergent barrier: a thread waits at " + described(place) + ", others have returned");
  }
  if (barrier.arrived == 0) barrier.place = place;
  const Place& other = barrier.place;
  if (other.line != place.line || std::strcmp(other.file, place.file) != 0) {
    fail("divergent barrier: some threads wait at " + described(other) + ", others at " +
         described(place));
  }
  if (++barrier.arrived < barrier.size) return false;
  barrier.arrived = 0;
  ++barrier.generation;
  return true;
}

// The running thread will come to no barrier any more.
void leave(Block& block) {
  for (Barrier* barrier :
       {&block.barrier, &block.warps[self->position.thread.x / kLanes].barrier}) {
    ++barrier->returned;
    if (barrier->arrived > 0) {
      fail("divergent barrier: threads wait at " + described(barrier->place) +
           ", one has returned");
    }
  }
}

std::vector<dim3> blocks_of(dim3 grid) {
  std::vector<dim3> blocks;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) blocks.emplace_back(x, y, z);
    }
  }
  return blocks;
}

std::vector<Thread> threads_of(dim3 grid, dim3 block) {
  std::vector<Thread> threads(block.x);
  for (unsigned i = 0; i < block.x; ++i) threads[i].position = {dim3(i, 0, 0), {}, block, grid};
  return threads;
}

}  // namespace

#ifdef AADL_HOST_THREADS

void fail(const std::string& message) {
  std::fprintf(stderr, "cuda_on_host: %s\n", message.c_str());
  std::abort();
}

namespace {

void wait(Barrier& barrier, const Place& place) {
  Block& block = *self->block;
  std::unique_lock<std::mutex> lock(block.mutex);
  const int64_t generation = barrier.generation;
  if (arrive(barrier, place)) return block.changed.notify_all();
  const auto open = [&] { return barrier.generation != generation; };
  if (!block.changed.wait_for(lock, std::chrono::minutes(2), open)) {
    fail("divergent barrier: threads wait at " + described(place) + ", others do not come");
  }
}

// Runs every second block, on threads of its own.
void run_half(const std::vector<dim3>& blocks, size_t first, std::vector<Thread> threads,
              int64_t shared_bytes, const std::function<void()>& body) {
  std::vector<std::unique_ptr<Block>> half;
  for (size_t b = first; b < blocks.size(); b += 2) {
    half.push_back(
        std::make_unique<Block>(blocks[b], static_cast<int>(threads.size()), shared_bytes));
  }
  std::vector<std::thread> running;
  for (Thread& thread : threads) {
    running.emplace_back([&] {
      self = &thread;
      position = &thread.position;
      for (const auto& block : half) {
        thread.enter(*block);
        body();
        const Unseen lock(*block);
        leave(*block);
      }
    });
  }
  for (std::thread& thread : running) thread.join();
}

void run(const std::vector<dim3>& blocks, const std::vector<Thread>& threads, int64_t shared_bytes,
         const std::function<void()>& body) {
  std::thread other([&] { run_half(blocks, 1, threads, shared_bytes, body); });
  run_half(blocks, 0, threads, shared_bytes, body);
  other.join();
}

}  // namespace

#else

namespace {

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

// The fibers of a launch and the turns that they take.
struct Scheduler {
  std::vector<Thread>& threads;
  const std::function<void()>& body;
  std::mt19937 random{schedule_seed};
  Resumption resumption = {};
  std::string failure = {};

  void shuffle(std::vector<size_t>& order) {
    if (schedule_seed != 0) std::shuffle(order.begin(), order.end(), random);
  }
};

Scheduler* scheduler = nullptr;

void switch_back() { switch_to(self->resumption, scheduler->resumption); }

void wait(Barrier& barrier, const Place& place) {
  self->generation = barrier.generation;
  if (arrive(barrier, place)) return;
  self->waits_at = &barrier;
  switch_back();
  self->waits_at = nullptr;
}

// A fiber: one CUDA thread after the other, each of its own block.
void run_threads() {
  for (;;) {
    scheduler->body();
    leave(*self->block);
    self->done = true;
    switch_back();
  }
}

AADL_SWITCHES void begin(Thread& thread) {
  if (__builtin_setjmp(scheduler->resumption.registers) == 0) setcontext(&thread.context);
}

void resume(Thread& thread) {
  self = &thread;
  position = &thread.position;
  if (thread.begun) return switch_to(scheduler->resumption, thread.resumption);
  thread.begun = true;
  begin(thread);
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

bool may_go_on(const Thread& thread) {
  const Barrier* barrier = thread.waits_at;
  return !thread.done && (!barrier || barrier->generation != thread.generation);
}

// Gives every thread turns until all have returned.
void run_block(Block& block) {
  std::vector<Thread>& threads = scheduler->threads;
  for (Thread& thread : threads) thread.enter(block);
  std::vector<size_t> order(threads.size());
  std::iota(order.begin(), order.end(), 0);
  for (bool progress = true; progress;) {
    progress = false;
    scheduler->shuffle(order);
    for (const size_t i : order) {
      if (!may_go_on(threads[i])) continue;
      progress = true;
      resume(threads[i]);
      if (!scheduler->failure.empty()) throw std::logic_error(scheduler->failure);
    }
  }
  for (const Thread& thread : threads) {
    if (!thread.done) {
      throw std::logic_error("divergent barrier: some threads wait at " +
                             described(thread.waits_at->place) + ", others elsewhere");
    }
  }
}

void run(const std::vector<dim3>& blocks, std::vector<Thread>& threads, int64_t shared_bytes,
         const std::function<void()>& body) {
  Scheduler own = {threads, body};
  scheduler = &own;
  for (size_t i = 0; i < threads.size(); ++i) prepare(threads[i].context, stack(i));
  std::vector<size_t> order(blocks.size());
  std::iota(order.begin(), order.end(), 0);
  own.shuffle(order);
  for (const size_t i : order) {
    Block block(blocks[i], static_cast<int>(threads.size()), shared_bytes);
    run_block(block);
  }
}

}  // namespace

// The fiber is left as it is, and the launch throws.
void fail(const std::string& message) {
  scheduler->failure = message;
  for (;;) switch_back();
}

#endif

void set_schedule(unsigned seed) { schedule_seed = seed; }

void launch(dim3 grid, dim3 block, int64_t shared_bytes, const std::function<void()>& body) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  if (block.x < 1 || block.x > 1024 || block.x % kLanes != 0 || block.y != 1 || block.z != 1) {
    throw std::logic_error("a block has a multiple of 32 threads up to 1024, in one dimension");
  }
  if (grid.x < 1 || grid.y < 1 || grid.y > 65535 || grid.z < 1 || grid.z > 65535) {
    throw std::logic_error("a grid has at least one block, and at most 65535 along y and z");
  }
  std::vector<Thread> threads = threads_of(grid, block);
  run(blocks_of(grid), threads, shared_bytes, body);
}

void synchronize_block(Place place) { wait(self->block->barrier, place); }

uint64_t exchange(uint64_t value, int source, Place place) {
  Warp& warp = self->block->warps[self->position.thread.x / kLanes];
  uint64_t* const values = warp.values[self->exchanges++ % 2];
  values[lane()] = value;
  wait(warp.barrier, place);
  return values[source];
}

void* shared_memory(const void* tag, size_t bytes) {
  Block& block = *self->block;
#ifdef AADL_HOST_THREADS
  const Unseen lock(block);
#endif
  for (const SharedMemory& memory : block.shared) {
    if (memory.tag == tag) return memory.bytes.get();
  }
  return block.shared.emplace_back(tag, bytes).bytes.get();
}

void* dynamic_shared_memory() { return shared_memory(nullptr, 0); }

}  // namespace aadl::cuda_on_host
