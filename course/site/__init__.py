"""The static site: `build` makes it whole or not at all, `serve` shows it on this machine.

`evidence` ties equations and mistakes to their tests; `extension` puts those ties on the pages (it is listed in
`book/_config.yml`); `vendor` fetches the third-party files that the site serves itself.
"""

from course.site.building import build, site_folder
from course.site.serving import make_server, serve

__all__ = ["build", "make_server", "serve", "site_folder"]
