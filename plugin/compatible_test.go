package plugin_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/plugin/internal/pb"
)

// published lists what hosts may rely on, a line each. It only grows.
const published = "testdata/wire-v1.txt"

// TestTheWireOnlyGrows holds the protocol against what was published before. New lines are recorded by
// "make proto"; a line that is gone breaks hosts that exist.
func TestTheWireOnlyGrows(t *testing.T) {
	now := wire()
	if os.Getenv("VMKEEP_RECORD_WIRE") != "" {
		data, _ := os.ReadFile(published)
		all := append(strings.Split(strings.TrimSpace(string(data)), "\n"), now...)
		slices.Sort(all)
		all = slices.DeleteFunc(slices.Compact(all), func(l string) bool { return l == "" })
		if err := os.WriteFile(published, []byte(strings.Join(all, "\n")+"\n"), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(published)
	if err != nil {
		t.Fatal(err)
	}
	before := strings.Split(strings.TrimSpace(string(data)), "\n")
	for _, line := range before {
		if !slices.Contains(now, line) {
			t.Errorf("gone or changed, which breaks hosts: %s", line)
		}
	}
	for _, line := range now {
		if !slices.Contains(before, line) {
			t.Errorf("new and not recorded (run \"make proto\"): %s", line)
		}
	}
}

// wire describes everything a host could depend on.
func wire() []string {
	h := plugin.Handshake()
	lines := []string{
		fmt.Sprintf("cookie %s=%s", h.MagicCookieKey, h.MagicCookieValue),
		"plugin " + plugin.PluginName,
	}
	// common.proto is imported by all; the service's file reaches every other.
	seen := map[string]bool{}
	var file func(protoreflect.FileDescriptor)
	file = func(f protoreflect.FileDescriptor) {
		if seen[f.Path()] || !strings.HasPrefix(f.Path(), "vmkeep/") {
			return
		}
		seen[f.Path()] = true
		for i := range f.Imports().Len() {
			file(f.Imports().Get(i).FileDescriptor)
		}
		for i := range f.Enums().Len() {
			values := f.Enums().Get(i).Values()
			for j := range values.Len() {
				lines = append(lines, fmt.Sprintf("enum %s %s = %d", f.Enums().Get(i).Name(), values.Get(j).Name(), values.Get(j).Number()))
			}
		}
		for i := range f.Messages().Len() {
			m := f.Messages().Get(i)
			lines = append(lines, "message "+string(m.Name()))
			for j := range m.Fields().Len() {
				lines = append(lines, "field "+described(m, m.Fields().Get(j)))
			}
		}
		for i := range f.Services().Len() {
			methods := f.Services().Get(i).Methods()
			for j := range methods.Len() {
				m := methods.Get(j)
				lines = append(lines, fmt.Sprintf("rpc %s(%s) stream=%v %s", m.FullName(), m.Input().Name(), m.IsStreamingServer(), m.Output().Name()))
			}
		}
	}
	file(pb.File_vmkeep_plugin_v1_service_proto)
	slices.Sort(lines)
	return lines
}

func described(m protoreflect.MessageDescriptor, f protoreflect.FieldDescriptor) string {
	kind := f.Kind().String()
	switch {
	case f.IsMap():
		kind = "map"
	case f.Message() != nil:
		kind = string(f.Message().Name())
	case f.Enum() != nil:
		kind = string(f.Enum().Name())
	}
	return fmt.Sprintf("%s.%s = %d %s %s", m.Name(), f.Name(), f.Number(), f.Cardinality(), kind)
}
