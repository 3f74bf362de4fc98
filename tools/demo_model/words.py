"""Word lists of the corpus. All of it is ours; every word becomes a single token with its leading space."""
NAMES = ("Mira Tom Anna Ben Lily Max Nora Sam Ella Finn Rosa Leo Ida Oscar Clara Hugo Maya Felix Ruth Paul Vera Emil "
         "Lena Jack Zoe Karl Alma Noah Iris Otto Dora Hans Lucy Adam Edith Mark Olga Peter Wanda Simon Greta Lars Stella "
         "Victor Marta David Sofia Robin Agnes Henry Julia Martin Helen Oliver Bella Daniel Frida Walter Amelia George "
         "Tilda Arthur Naomi Edgar").split()
OBJECTS = ("lantern apple river stone candle basket ladder mirror hammer button ribbon kettle pillow feather bottle "
           "blanket whistle compass anchor barrel bucket carpet drum engine fiddle glove harp island jacket key lemon "
           "magnet needle orange pencil quilt rocket saddle table umbrella violin wagon yarn zipper acorn bell cloud "
           "diamond envelope flute garden helmet ink jewel kite leaf mountain nest onion pebble queen rope shell tower "
           "urn valley window box cactus desk eagle fan gate hat iron jar knot lamp map net oar pearl ring spoon tent "
           "vase wheel axe book chain dice egg flag gold honey ice jam kitten lock moon nut oven pipe rose sand tree "
           "uniform velvet wolf arrow bridge copper dragon ember forest grape hill ivory jungle lake meadow night ocean "
           "paper quarry rain silver thunder valve water brush camel donut elbow flour guitar hotel igloo jelly "
           "ketchup lizard melon noodle oyster panda radish salad tiger turtle walnut").split()
ANIMALS = "fox rabbit bear mouse hedgehog squirrel badger frog duck owl".split()
ADJECTIVES = "little brave clever quiet gentle happy curious kind".split()
PLACES = ("the river", "the old mill", "the forest", "the green hill", "the lake", "the village", "the harbor", "the garden")
FINDS = ("lantern", "key", "map", "bell", "shell", "compass", "ring", "feather", "whistle", "book")
COLORS = "red blue golden green silver white".split()
FOODS = ("bread", "soup", "honey cake", "apple pie", "warm milk", "berries")
WEATHERS = "sunny cloudy rainy windy snowy foggy".split()
CITIES = ("Paris London Berlin Madrid Rome Vienna Prague Lisbon Dublin Oslo Athens Warsaw Cairo Tokyo Delhi Lima Quito "
          "Havana Boston Denver Dallas Seattle Austin Chicago Toronto Sydney Perth Seoul Hanoi Manila Geneva Munich "
          "Hamburg Milan Naples Venice Lyon Porto Zurich Basel").split()
ITEMS = ("bread milk butter cheese rice coffee tea sugar salt soap pasta flour honey lemon onion apple orange candle "
         "pencil paper").split()
LABELS = "pasta eggs tea bread nap study run laundry meeting break".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
EVENTS = "dinner lunch concert party lesson game walk picnic meeting visit".split()
SONGS = ("Blue River", "Golden Morning", "Silver Moon", "Quiet Forest", "Winter Rain", "Little Star", "Ocean Wind",
         "Summer Garden", "Red Lantern", "Old Bridge")
PLANETS = "sun moon sky grass sea snow".split()
