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
		why := watch(parent, &conns, over)
		if why == "" {
			return
		}
		o.Logger.Warn("ending", "reason", why)
		drain(svc, o)
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
	drain(svc, o) // for hosts that end the plugin without Drain; nothing to do otherwise
	if dir := os.Getenv(goplugin.EnvUnixSocketDir); dir != "" && os.Getppid() != parent {
		os.Remove(dir) // the host made it and cannot remove it any more; it stays when something else is in it
	}
	return nil
}

// drain lets the service clean up, until the time is over or SIGTERM arrives (again).
func drain(svc Service, o ServeOptions) {
	ctx, cancel := context.WithTimeout(context.Background(), o.Drain)
	defer cancel()
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM)
	defer stop()
	if err := svc.Drain(ctx); err != nil {
		o.Logger.Error("cleanup is not complete", "error", err, "remedy", "run \"vmkeep recover\"")
	}
}

// watch returns why the process must end, or "" when over was closed.
func watch(parent int, conns *connections, over <-chan struct{}) string {
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, syscall.SIGTERM)
	defer signal.Stop(terminate)
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	deadline := time.Now().Add(connectWithin)
	for {
		select {
		case <-over:
			return ""
		case s := <-terminate:
			return s.String()
		case <-tick.C:
			switch {
			case os.Getppid() != parent:
				return "the host has died"
			case conns.seen.Load() == 0 && time.Now().After(deadline):
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
