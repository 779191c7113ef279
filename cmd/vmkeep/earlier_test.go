package main

import (
	"context"
	"os"
	"strings"

	"github.com/vmkeep/vmkeep/plugin"
)

// earlierPlugin is a plugin of a time when there was little that a plugin could do.
const earlierPlugin = "earlier-plugin"

// playEarlier is its main.
func playEarlier() {
	if err := plugin.Serve(earlier{}, plugin.ServeOptions{}); err != nil {
		os.Exit(1)
	}
}

// earlier lists machines and plans restores. What it says that it can is in LANG, one of the variables that a plugin inherits.
type earlier struct{ plugin.Service }

func (earlier) Info(context.Context) (plugin.Info, error) {
	return plugin.Info{Name: "vmkeep", Version: "0.0.1", APIVersion: plugin.APIVersion, Capabilities: strings.Fields(os.Getenv("LANG"))}, nil
}

func (earlier) Configure(context.Context, plugin.Config) error { return nil }

func (earlier) Machines(context.Context, plugin.Selection) ([]plugin.Machine, error) {
	return []plugin.Machine{{Name: "web"}}, nil
}

func (earlier) PlanRestore(context.Context, plugin.RestoreRequest) (plugin.RestorePlan, error) {
	return plugin.RestorePlan{}, nil
}

func (earlier) Drain(context.Context) error { return nil }
