# Rack's sessions in memory (Rack::Session::Pool): each is known to the worker that has begun it.

class NameWorker
  def initialize(app)
    @app = app
  end

  def call(env)
    status, headers, body = @app.call(env)
    Rack::Utils.set_cookie_header!(headers, 'route', value: ENV['HANDFAST_ROUTE'], path: '/', httponly: true, same_site: :lax)
    [status, headers, body]
  end
end

use NameWorker
use Rack::Session::Pool
run ->(env) do
  session = env['rack.session']
  session[:visits] = (session[:visits] || 0) + 1
  [200, { 'content-type' => 'text/plain' }, ["slot=#{ENV['HANDFAST_SLOT']} generation=#{ENV['HANDFAST_GENERATION']} visits=#{session[:visits]}\n"]]
end
