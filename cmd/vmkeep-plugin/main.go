// Command vmkeep-plugin is the plugin that backup applications load: package engine behind the protocol
// vmkeep.plugin.v1.
//
// Started by a host (go-plugin's handshake) it serves until the host ends it. Started by hand it tells about itself:
//
//	vmkeep-plugin --version
//	vmkeep-plugin describe     what a host needs to know before it loads the plugin, as JSON
//	vmkeep-plugin role backup  the line that makes the vSphere role for backups, with govc; also: role restore
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"

	"github.com/hashicorp/go-hclog"

	"github.com/vmkeep/vmkeep/cmd/internal/build"
	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/plugin/engine"
)

func main() {
	collectOften()
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// collectOften has garbage collected when it is a quarter of the live memory, unless GOGC is set. The heap is few, large
// buffers without pointers, when there is work to do: collecting it costs next to nothing then, while the usual setting
// lets as much garbage pile up as there is live memory.
func collectOften() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(25)
	}
}

// Arguments that are not known are ignored, as hosts of later versions may pass more.
func run(args []string, stdout, stderr io.Writer) int {
	level := hclog.Info
	for _, arg := range args {
		switch name, value, _ := strings.Cut(arg, "="); name {
		case "--version", "version":
			fmt.Fprintf(stdout, "vmkeep-plugin %s (%s)\n", build.Version(), build.Platform())
			return 0
		case "describe":
			return describe(stdout, stderr)
		case "role":
			return role(args, stdout, stderr)
		case "--help", "-h", "help":
			fmt.Fprint(stdout, help)
			return 0
		case "--log-level":
			if l := hclog.LevelFromString(value); l != hclog.NoLevel {
				level = l
			}
		}
	}
	log := hclog.New(&hclog.LoggerOptions{Name: plugin.PluginName, Level: level, Output: stderr, JSONFormat: true})
	service := engine.New(engine.Options{Version: build.Version(), Logger: log, HostRoot: os.Getenv("VMKEEP_HOST_ROOT")})
	err := plugin.Serve(service, plugin.ServeOptions{Logger: log})
	if errors.Is(err, plugin.ErrNotLoaded) {
		fmt.Fprint(stderr, help)
		return 1
	}
	if err = errors.Join(err, service.Close()); err != nil {
		log.Error("ending", "error", err)
		return 1
	}
	return 0
}

// description is what a host can learn without loading the plugin.
type description struct {
	Name             string   `json:"name"`
	Version          string   `json:"version"`
	APIVersion       string   `json:"api_version"`
	ProtocolVersions []int    `json:"protocol_versions"`
	CookieKey        string   `json:"cookie_key"`
	CookieValue      string   `json:"cookie_value"`
	Capabilities     []string `json:"capabilities"`
	Transports       []string `json:"transports"`
}

// role prints the line that makes a vSphere role.
func role(args []string, stdout, stderr io.Writer) int {
	line, err := engine.Role(args[len(args)-1])
	if err != nil {
		fmt.Fprintln(stderr, "vmkeep-plugin:", err)
		return 1
	}
	fmt.Fprint(stdout, line)
	return 0
}

func describe(stdout, stderr io.Writer) int {
	service := engine.New(engine.Options{Version: build.Version()})
	info, err := service.Info(context.Background())
	if err = errors.Join(err, service.Close()); err != nil {
		fmt.Fprintln(stderr, "vmkeep-plugin:", err)
		return 1
	}
	d := description{Name: info.Name, Version: info.Version, APIVersion: info.APIVersion, ProtocolVersions: []int{plugin.ProtocolVersion},
		CookieKey: plugin.CookieKey, CookieValue: plugin.CookieValue, Capabilities: info.Capabilities, Transports: info.Transports}
	out := json.NewEncoder(stdout)
	out.SetIndent("", "  ")
	if err := out.Encode(d); err != nil {
		fmt.Fprintln(stderr, "vmkeep-plugin:", err)
		return 1
	}
	return 0
}

const help = `vmkeep-plugin backs up VMware machines for a backup application, which starts it and talks to it.
It has nothing to do when started by hand. For a command line, run "vmkeep".

  vmkeep-plugin --version    tell the version
  vmkeep-plugin describe     tell as JSON what a host needs to know
  vmkeep-plugin role backup  print the govc line for a vSphere role with the privileges a backup needs (or: restore)

In a container that reads disks by HotAdd, VMKEEP_HOST_ROOT names the directory with the machine's own /sys and /dev.
Memory is collected when a quarter of it is garbage; GOGC takes another percentage, which saves CPU time for memory.

How a backup application loads it: plugin/proto/README.md in the source.
`
