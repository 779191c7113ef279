package engine

import (
	"context"

	"github.com/vmkeep/vmkeep/plugin"
)

func unsupported() error {
	return &plugin.Error{Code: plugin.CodeUnsupported, Summary: "not built yet"}
}

func (e *Engine) Forget(context.Context, plugin.ForgetRequest) (plugin.ForgetReport, error) {
	return plugin.ForgetReport{}, unsupported()
}
func (e *Engine) Prune(context.Context, plugin.PruneRequest, func(plugin.Event)) (plugin.PruneReport, error) {
	return plugin.PruneReport{}, unsupported()
}
func (e *Engine) ListFiles(context.Context, plugin.FileRequest, func(plugin.File) error) error {
	return unsupported()
}
func (e *Engine) ReadFile(context.Context, plugin.FileRequest, func(plugin.Frame) error) error {
	return unsupported()
}
func (e *Engine) TarFiles(context.Context, plugin.FileRequest, func([]byte) error) error {
	return unsupported()
}
