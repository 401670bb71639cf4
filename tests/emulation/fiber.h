// Threads of control on stacks of their own, all in the host thread that runs the block.
#pragma once

namespace emulation {

// Makes fibers 0 … count − 1 ready to call body(their number). Those that an error left in the
// middle of a body start anew.
void prepare_fibers(int count, void (*body)(int fiber));

// Runs a fiber until it goes back; returns whether its body is through.
bool switch_to_fiber(int fiber);

// From within a fiber.
void switch_back();

}  // namespace emulation
