package plugin

import (
	"context"
	"fmt"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
)

// What both sides of go-plugin's handshake know.
const (
	// ProtocolVersion is go-plugin's number of the protocol vmkeep.plugin.v1.
	ProtocolVersion = 1
	// PluginName is the key under which a go-plugin host dispenses the [Service].
	PluginName = "vmkeep"
	// APIVersion is what [Info] calls the protocol.
	APIVersion = "v1"

	// The cookie tells a plugin that a host started it. It is no secret; it never changes.
	CookieKey   = "VMKEEP_PLUGIN_COOKIE"
	CookieValue = "ec02df5351f7ac290e9f4331a27cad941c7a0f8a48fae317bb3fa15aae2915f1"
)

// Handshake is go-plugin's handshake of a vmkeep plugin, for hosts that manage go-plugin clients themselves.
func Handshake() goplugin.HandshakeConfig {
	return goplugin.HandshakeConfig{ProtocolVersion: ProtocolVersion, MagicCookieKey: CookieKey, MagicCookieValue: CookieValue}
}

// Plugins is what is served and dispensed under [PluginName], by protocol version. A host passes the zero Glue.
func Plugins(g Glue) map[int]goplugin.PluginSet {
	return map[int]goplugin.PluginSet{ProtocolVersion: {PluginName: &g}}
}

// Glue is the [goplugin.GRPCPlugin] of vmkeep. Dispensing it gives a [Service].
type Glue struct {
	goplugin.NetRPCUnsupportedPlugin
	Service Service      // in a plugin: what to serve
	Logger  hclog.Logger // in a plugin
	Host    string       // in a host: its name and version, for the plugin's log
}

var _ goplugin.GRPCPlugin = (*Glue)(nil)

// GRPCServer registers the service; go-plugin calls it in the plugin.
func (g *Glue) GRPCServer(_ *goplugin.GRPCBroker, s *grpc.Server) error {
	if g.Service == nil {
		return fmt.Errorf("nothing to serve as %s", PluginName)
	}
	Register(s, g.Service, g.Logger)
	return nil
}

// GRPCClient makes the [Service]; go-plugin calls it in the host.
func (g *Glue) GRPCClient(_ context.Context, _ *goplugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return NewClient(conn, g.Host), nil
}
