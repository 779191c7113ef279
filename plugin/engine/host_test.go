package engine_test

import (
	"context"
	"encoding/json"
	"os"

	"github.com/vmkeep/vmkeep/plugin"
)

// noCancel is a context that no test ends: what is under test is the end of processes.
func noCancel() context.Context { return context.Background() }

// hostVariable makes the test program a host that gives a plugin an order; its value is a file with it.
const hostVariable = "VMKEEP_ENGINE_TEST_HOST"

type hostOrder struct {
	Plugin      string
	Environment []string
	Config      plugin.Config
	Order       order
}

// runHost is that host.
func runHost(file string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var o hostOrder
	if err := json.Unmarshal(b, &o); err != nil {
		return err
	}
	p, err := plugin.Load(context.Background(), plugin.LoadOptions{Path: o.Plugin, Host: "engine tests", Environment: o.Environment})
	if err != nil {
		return err
	}
	defer p.Kill()
	if err := p.Configure(context.Background(), o.Config); err != nil {
		return err
	}
	return o.Order.do(p)
}
