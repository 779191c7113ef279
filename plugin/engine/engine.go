// Package engine is the pipeline of vmkeep: the only package that knows all the libraries.
//
// It implements [plugin.Service] by composing them: package vsphere finds machines, tracks changes and takes
// snapshots; package vddk opens the disks of a snapshot; package chunker cuts what changed; package repo
// deduplicates, compresses, seals and stores. The libraries do not know one another, so everything that
// depends on two of them is here, and nothing else: what a point looks like in the repository (manifest.go,
// layout.go), when a change id may be trusted (trust.go), how a backup and a restore go.
//
// Lifetimes. A vSphere session and an opened repository live as long as a configuration. Everything else
// belongs to one operation, is bound to that operation's context, and is gone when its call returns.
package engine

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/vmkeep/vmkeep/plugin"
)

// Options are what the embedding program decides.
type Options struct {
	Version string // of the program, for manifests and reports
	Logger  hclog.Logger
	// HostRoot is the directory in which the /sys and /dev of the machine lie that this program runs in, for disks that
	// are hot-added to it. A container sees others than its machine's, if any.
	HostRoot string // empty: /
}

// Engine implements [plugin.Service]. It is safe for concurrent use.
type Engine struct {
	opt Options
	log hclog.Logger

	mu         sync.Mutex
	configured *connections // nil before Configure
	draining   bool
	running    map[string]context.CancelCauseFunc // operations by id
	idle       chan struct{}                      // closed when the last operation ended; nil while none waits
}

var _ plugin.Service = (*Engine)(nil)

// New makes an engine. It does nothing until it is configured.
func New(opt Options) *Engine {
	if opt.Logger == nil {
		opt.Logger = hclog.NewNullLogger()
	}
	if opt.HostRoot == "" {
		opt.HostRoot = "/"
	}
	return &Engine{opt: opt, log: opt.Logger, running: map[string]context.CancelCauseFunc{}}
}

// Close drains the engine for at most a minute and gives its sessions back.
func (e *Engine) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := e.Drain(ctx)
	e.mu.Lock()
	c := e.configured
	e.configured = nil
	e.mu.Unlock()
	if c != nil {
		err = errors.Join(err, c.close())
	}
	return err
}

// Info implements [plugin.Service].
func (e *Engine) Info(context.Context) (plugin.Info, error) {
	return plugin.Info{
		Name:       "vmkeep",
		Version:    e.opt.Version,
		APIVersion: plugin.APIVersion,
		Capabilities: []string{
			plugin.CapabilityIncremental, plugin.CapabilityRestore, plugin.CapabilityRollback,
			plugin.CapabilityReadDisk, plugin.CapabilityFiles, plugin.CapabilityVerify, plugin.CapabilityKeeping,
		},
		Transports: defaultTransports(),
	}, nil
}

// Configure implements [plugin.Service]. A second call replaces the first; it waits for nothing and is refused
// while operations run.
func (e *Engine) Configure(ctx context.Context, c plugin.Config) error {
	found, err := e.Validate(ctx, c)
	if err != nil {
		return err
	}
	for _, d := range found {
		if d.Severity == plugin.SeverityError && d.Code != plugin.CodeNotConfigured { // who needs that will miss it
			return &plugin.Error{Code: d.Code, Summary: d.Summary, Detail: d.Detail, Remedy: d.Remedy, Object: d.Object}
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.running) > 0 {
		return &plugin.Error{Code: plugin.CodeInvalid, Summary: "the configuration cannot change now",
			Detail: fmt.Sprintf("%d operations are running", len(e.running)), Remedy: "wait for them, or drain the plugin first"}
	}
	if e.configured != nil {
		if err := e.configured.close(); err != nil {
			e.log.Warn("closing the former connections", "error", err)
		}
	}
	e.configured = newConnections(c, e.opt)
	return nil
}

// connections returns what Configure set.
func (e *Engine) connections() (*connections, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.configured == nil {
		return nil, &plugin.Error{Code: plugin.CodeNotConfigured, Summary: "vmkeep is not configured",
			Remedy: "call Configure with at least a repository"}
	}
	return e.configured, nil
}

// operation is one long call.
type operation struct {
	id   string
	conn *connections
	out  *emitter
	log  hclog.Logger
}

var errDraining = errors.New("the plugin is shutting down")

// operate runs fn as an operation: registered for Drain, with an emitter, its error in the contract's form.
func (e *Engine) operate(ctx context.Context, kind string, emit func(plugin.Event), fn func(ctx context.Context, op *operation) error) error {
	conn, err := e.connections()
	if err != nil {
		return err
	}
	id := newOperationID()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	e.mu.Lock()
	if e.draining {
		e.mu.Unlock()
		return &plugin.Error{Code: plugin.CodeCancelled, Summary: "no new operation is accepted", Err: errDraining,
			Detail: errDraining.Error(), Remedy: "start the plugin again"}
	}
	e.running[id] = cancel
	e.mu.Unlock()
	defer e.ended(id)

	op := &operation{id: id, conn: conn, log: e.log.With("operation", id, "kind", kind), out: newEmitter(id, emit)}
	defer op.out.close()
	op.log.Debug("operation started")
	err = fn(ctx, op)
	for _, left := range conn.takeLeft() {
		scope{out: op.out}.tell(warning(plugin.CodeLeftover, "a disk may be left attached to the machine that vmkeep runs in", left.Error(), "run `vmkeep recover`"))
	}
	op.log.Debug("operation ended", "error", err)
	return failureOf(ctx, err)
}

func (e *Engine) ended(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.running, id)
	if len(e.running) == 0 && e.idle != nil {
		close(e.idle)
		e.idle = nil
	}
}

// Drain implements [plugin.Service].
func (e *Engine) Drain(ctx context.Context) error {
	e.mu.Lock()
	e.draining = true
	for _, cancel := range e.running {
		cancel(errDraining)
	}
	n := len(e.running)
	if n == 0 {
		e.mu.Unlock()
		return nil
	}
	if e.idle == nil {
		e.idle = make(chan struct{})
	}
	idle := e.idle
	e.mu.Unlock()
	e.log.Info("draining", "operations", n)
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return &plugin.Error{Code: plugin.CodeLeftover, Summary: "operations did not end in time", Err: context.Cause(ctx),
			Detail: "their cleanup goes on while the plugin lives", Remedy: "run recover after the next start"}
	}
}

// newOperationID is random, short enough to be part of a snapshot's name, and sorts by time.
func newOperationID() string {
	var b [5]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	return time.Now().UTC().Format("20060102T150405") + "-" + hex.EncodeToString(b[:])
}

// cpus is how many goroutines of computing work are worth running at once.
func cpus() int { return runtime.GOMAXPROCS(0) }
