package plugin

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"
)

// ErrNotLoaded is returned by [Serve] in a process that no host started.
var ErrNotLoaded = errors.New("this program is a plugin: a backup application starts it")

// Bounds of a plugin process's life.
const (
	// DefaultDrain is how long a plugin that must end gives its operations to clean up: removing a snapshot of a busy
	// machine takes minutes.
	DefaultDrain = 10 * time.Minute
	// watchInterval is how often the plugin looks whether its host still lives.
	watchInterval = 500 * time.Millisecond
	// connectWithin is how long a host may take to connect.
	connectWithin = time.Minute
)

// ServeOptions are the circumstances of [Serve]. The zero value is usual.
type ServeOptions struct {
	Logger hclog.Logger  // nil: JSON lines on standard error, as go-plugin hosts read them
	Drain  time.Duration // how long to wait for cleanup when the process must end; 0: [DefaultDrain]
}

// Serve serves svc to the host that started this process, until the host ends it or dies, or SIGTERM arrives; then it
// drains svc and returns. A second SIGTERM ends the draining. It takes over standard output and SIGINT, as go-plugin
// does: an interrupt at a terminal reaches all processes, and what it means is the host's decision.
func Serve(svc Service, o ServeOptions) error {
	if os.Getenv(CookieKey) != CookieValue {
		return ErrNotLoaded
	}
	parent := os.Getppid()
	// When the host dies, so does the reader of standard error. The next line of the log must not kill the plugin by
	// SIGPIPE in the middle of its cleanup. (Ignoring the signal would ignore it in child processes as well.)
	brokenPipe, terminate := make(chan os.Signal, 1), make(chan os.Signal, 2)
	signal.Notify(brokenPipe, syscall.SIGPIPE)
	defer signal.Stop(brokenPipe)
	signal.Notify(terminate, syscall.SIGTERM)
	defer signal.Stop(terminate)
	if o.Logger == nil {
		o.Logger = hclog.New(&hclog.LoggerOptions{Name: PluginName, Level: hclog.Info, Output: os.Stderr, JSONFormat: true})
	}
	if o.Drain == 0 {
		o.Drain = DefaultDrain
	}

	var conns connections
	servers := make(chan *grpc.Server, 1)
	over := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		l := life{parent: parent, conns: &conns, terminate: terminate, over: over}
		why := l.watch()
		if why == "" {
			return
		}
		o.Logger.Warn("ending", "reason", why)
		drain(svc, o, terminate)
		(<-servers).Stop()
	}()
	goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig:  Handshake(),
		VersionedPlugins: Plugins(Glue{Service: svc, Logger: o.Logger}),
		Logger:           o.Logger,
		GRPCServer: func(opts []grpc.ServerOption) *grpc.Server {
			s := grpc.NewServer(append(opts, grpc.MaxRecvMsgSize(MaxRequest), grpc.StatsHandler(&conns))...)
			servers <- s
			return s
		},
	})
	close(over)
	<-watched
	drain(svc, o, terminate) // for hosts that end the plugin without Drain; nothing to do otherwise
	if dir := os.Getenv(goplugin.EnvUnixSocketDir); dir != "" && os.Getppid() != parent {
		os.Remove(dir) // the host made it and cannot remove it any more; it stays when something else is in it
	}
	return nil
}

// drain lets the service clean up, until the time is over or SIGTERM arrives (again).
func drain(svc Service, o ServeOptions, terminate <-chan os.Signal) {
	ctx, cancel := context.WithTimeout(context.Background(), o.Drain)
	defer cancel()
	drained := make(chan struct{})
	defer close(drained)
	go func() {
		select {
		case <-terminate:
			cancel()
		case <-drained:
		}
	}()
	if err := svc.Drain(ctx); err != nil {
		o.Logger.Error("cleanup is not complete", "error", err, "remedy", "run \"vmkeep recover\"")
	}
}

// life is what a plugin process's life depends on.
type life struct {
	parent    int
	conns     *connections
	terminate <-chan os.Signal
	over      <-chan struct{} // closed when the host has ended the plugin
}

// watch returns why the process must end, or "" when it is over.
func (l life) watch() string {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	deadline := time.Now().Add(connectWithin)
	for {
		select {
		case <-l.over:
			return ""
		case s := <-l.terminate:
			return s.String()
		case <-tick.C:
			switch {
			case os.Getppid() != l.parent:
				return "the host has died"
			case l.conns.seen.Load() == 0 && time.Now().After(deadline):
				return "no host has connected"
			}
		}
	}
}

// connections counts what connected.
type connections struct{ seen atomic.Int64 }

var _ stats.Handler = (*connections)(nil)

func (c *connections) HandleConn(_ context.Context, s stats.ConnStats) {
	if _, ok := s.(*stats.ConnBegin); ok {
		c.seen.Add(1)
	}
}

func (c *connections) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (c *connections) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (c *connections) HandleRPC(context.Context, stats.RPCStats)                         {}
