# A Rack application, for puma, thin and unicorn.
run lambda { |env|
  text = format("slot=%s pid=%d generation=%s client=%s\n",
                ENV['HANDFAST_SLOT'], Process.pid, ENV['HANDFAST_GENERATION'], env['REMOTE_ADDR'])
  [200, { 'content-type' => 'text/plain' }, [text]]
}
