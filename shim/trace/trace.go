// Package trace records when the steps of one container's life happened, for
// the bench and for the debug log.
package trace

import (
	"encoding/json"
	"os"
	"sync"
	"time"
)

// Env names the environment variable that holds the file which Write appends
// to. Without it nothing is written.
const Env = "APPLEVM_TRACE"

// EnvExec carries, from the shim's start command to the process that stays, when
// the start command began: nanoseconds since 1970.
const EnvExec = "APPLEVM_TRACE_EXEC"

// Names of the marks, in the order in which they happen.
const (
	ShimExec       = "shim-exec"       // containerd ran the shim's start command
	ShimServing    = "shim-serving"    // the shim's service exists
	CreateBegin    = "create-begin"    // containerd's Create arrived
	VMMStart       = "vmm-start"       // the VMM is about to be started
	VMMStarted     = "vmm-started"     // the VMM runs the guest
	AgentConnected = "agent-connected" // the agent has called
	GuestCreate    = "guest-create"    // the guest is asked for the container
	GuestCreated   = "guest-created"   // the guest has made it
	CreateEnd      = "create-end"      // Create is about to return
	StartBegin     = "start-begin"     // containerd's Start arrived
	StartEnd       = "start-end"       // Start is about to return
	Exit           = "exit"            // the init process's exit is known
	DeleteBegin    = "delete-begin"    // containerd's Delete arrived
	GuestDeleted   = "guest-deleted"   // the guest is done with its disks
	MachineGone    = "machine-gone"    // the VMM has ended
	DeleteEnd      = "delete-end"      // Delete is about to return
)

// Record is the JSON line that Write appends.
type Record struct {
	Namespace string `json:"namespace"`
	ID        string `json:"id"`
	// Marks hold nanoseconds since 1970-01-01 UTC.
	Marks map[string]int64 `json:"marks"`
	// Guest holds what the agent said of its own start, in nanoseconds since
	// the kernel's start.
	Guest map[string]int64 `json:"guest,omitempty"`
}

// Recorder collects the marks of one container. It is safe for concurrent use.
type Recorder struct {
	mu  sync.Mutex
	rec Record
}

// New returns a Recorder for the container id in namespace.
func New(namespace, id string) *Recorder {
	return &Recorder{rec: Record{Namespace: namespace, ID: id, Marks: map[string]int64{}, Guest: map[string]int64{}}}
}

// Mark notes that name happens now.
func (r *Recorder) Mark(name string) { r.MarkAt(name, time.Now()) }

// MarkAt notes that name happened at t. A zero t is ignored.
func (r *Recorder) MarkAt(name string, t time.Time) {
	if t.IsZero() {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rec.Marks[name] = t.UnixNano()
}

// Guest notes a duration that the guest has told.
func (r *Recorder) Guest(name string, ns int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rec.Guest[name] = ns
}

// Between returns the time from one mark to another, 0 if one is missing.
func (r *Recorder) Between(from, to string) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	a, b := r.rec.Marks[from], r.rec.Marks[to]
	if a == 0 || b == 0 {
		return 0
	}
	return time.Duration(b - a)
}

// Write appends the record, as one line of JSON, to the file path. An empty
// path writes nothing.
func (r *Recorder) Write(path string) error {
	if path == "" {
		return nil
	}
	r.mu.Lock()
	b, err := json.Marshal(r.rec)
	r.mu.Unlock()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	// One write, so that the lines of several shims do not mix.
	_, err = f.Write(append(b, '\n'))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}
